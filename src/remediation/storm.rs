//! Too many sick at once: the cause is elsewhere. One parent incident per group says so, once, to a person; the incidents
//! of the targets stay, held by the fleet-wide gate.

use protocol::{
    CloudEvent, Target, cloudevent, id,
    message::{Incident, IncidentState},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Effect, Fleet, FleetConfig, config::ms, gate::Sickness, state::StateKey};

/// A group that was too sick lately.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Storm {
    pub incident: Uuid,
    pub since_ms: i64,
    /// When it was last too sick.
    pub last_ms: i64,
    /// An incident was published for it: a storm of the whole fleet speaks for its groups.
    pub said: bool,
    /// How many were sick when it was last said, and how often it was.
    #[serde(default)]
    pub sick: u64,
    #[serde(default)]
    pub told: u32,
}

impl Fleet {
    /// How sick a group is; the fleet as a whole is the empty name. `None` when nobody has said how large it is.
    pub(crate) fn sickness(&self, group: &str) -> Option<Sickness> {
        let (sick, population) = if group.is_empty() {
            let groups = self.state.peaks.keys();
            let largest = groups.filter_map(|group| self.population(group)).max();
            (Some(&self.index.sick_targets), largest)
        } else {
            (self.index.sick.get(group), self.population(group))
        };
        let roots = sick.map_or(0, |sick| {
            self.roots(sick.values().map(|sick| (sick.name.as_str(), sick.own > 0)))
        });
        let sick = roots as u64;
        Some(Sickness {
            sick,
            // A detector that has just started has seen fewer than are sick already.
            population: population?.max(sick),
            peak: self.state.peaks.get(group).map_or(0, |peak| peak.count),
        })
    }

    pub(crate) fn stormy(&self, sickness: &Sickness, config: &FleetConfig) -> bool {
        let share = sickness.sick as f64 / sickness.population.max(1) as f64;
        let group = sickness.population.max(sickness.peak);
        let too_large_a_share = group >= u64::from(config.min_group) && share > config.fleet_sick_share;
        too_large_a_share || sickness.sick > u64::from(config.fleet_sick_max)
    }

    /// Opens, keeps and ends storms, after every record.
    pub(crate) fn note_storms(&mut self, out: &mut Vec<Effect>) {
        let now_ms = self.now_ms();
        let groups: Vec<String> = [String::new()]
            .into_iter()
            .chain(self.index.sick.keys().cloned())
            .collect();
        for group in groups {
            let Some(sickness) = self
                .sickness(&group)
                .filter(|sickness| self.stormy(sickness, &self.config))
            else {
                continue;
            };
            self.dirty.insert(StateKey::Clock);
            if let Some(storm) = self.state.clock.storms.get_mut(&group) {
                storm.last_ms = now_ms;
                let told = storm.sick.max(1);
                let moved = match sickness.sick {
                    sick if sick >= told * 2 => "grew",
                    sick if sick <= told / 2 => "shrank",
                    _ => continue,
                };
                (storm.sick, storm.told) = (sickness.sick, storm.told + 1);
                let storm = storm.clone();
                if storm.said {
                    let reason = format!("it {moved}: {} of {} are sick now", sickness.sick, sickness.population);
                    self.say_storm(&group, &storm, IncidentState::Escalated, &reason, out);
                }
                continue;
            }
            self.state.clock.storms_seen += 1;
            let ordinal = self.state.clock.storms_seen.to_string();
            let storm = Storm {
                incident: id::derived("storm", &[&self.config.tenant, &group, &ordinal]),
                since_ms: now_ms,
                last_ms: now_ms,
                said: !self.state.clock.storms.contains_key(""),
                sick: sickness.sick,
                told: 0,
            };
            let reason = format!(
                "{} of {} are sick at once: nothing is done until a person has looked, or fewer are",
                sickness.sick, sickness.population
            );
            if storm.said {
                self.say_storm(&group, &storm, IncidentState::Escalated, &reason, out);
            }
            self.state.clock.storms.insert(group, storm);
        }
        let cooldown_ms = ms(self.config.storm_cooldown);
        let over = |storm: &Storm| now_ms >= storm.last_ms.saturating_add(cooldown_ms);
        let storms = &self.state.clock.storms;
        let ended: Vec<String> = storms
            .iter()
            .filter(|(_, storm)| over(storm))
            .map(|(group, _)| group.clone())
            .collect();
        for group in ended {
            let Some(storm) = self.state.clock.storms.remove(&group) else {
                continue;
            };
            self.dirty.insert(StateKey::Clock);
            if storm.said {
                self.say_storm(&group, &storm, IncidentState::Closed, "fewer are sick", out);
            }
        }
    }

    fn say_storm(&self, group: &str, storm: &Storm, state: IncidentState, reason: &str, out: &mut Vec<Effect>) {
        let tenant = &self.config.tenant;
        let target = Target {
            tenant: tenant.clone(),
            scope: "fleet".into(),
            ..Target::default()
        };
        let (pipeline, detector) = group.rsplit_once('.').unwrap_or(("*", "*"));
        let data = Incident {
            incident_id: storm.incident,
            target_key: target.key(),
            policy: "fleet_wide".into(),
            pipeline: pipeline.to_owned(),
            detector: detector.to_owned(),
            state,
            opened_at: storm.since_ms,
            changed_at: self.now_ms(),
            actions: Vec::new(),
            reason: reason.to_owned(),
        };
        let closed = matches!(state, IncidentState::Closed);
        let name = if closed {
            "closed".to_owned()
        } else {
            storm.told.to_string()
        };
        let event_id = id::derived("storm_event", &[&storm.incident.to_string(), &name]);
        let source = format!("/homeostat/{tenant}");
        let kind = cloudevent::INCIDENT;
        let mut event = CloudEvent::new(event_id, tenant, &source, kind, &data.target_key, self.now_ms());
        event.recorded_time_ms = Some(self.now_ms());
        event.correlation_id = Some(storm.incident);
        event.causation_id = Some(storm.incident);
        event.traceparent = Some(id::traceparent(storm.incident, event_id));
        out.push(Effect::Incident { event, data });
    }
}

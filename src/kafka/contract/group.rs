//! Groups: sharing, rebalancing, offsets.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use protocol::{Batch, Committed, Progress, TopicPartition};

use super::{Entry, Needs, World, output, patiently, poll, wait_until};
use crate::{Class, Consumer, Polled, partitions_of};

const REVOKE: Option<Needs> = Some(("commit_in_revoke", |c| c.commit_in_revoke));

pub(super) const CASES: &[Entry] = &[
    (
        "nobody is a member before the group says so",
        Some(("groups", |c| c.groups)),
        not_yet,
    ),
    ("a group shares partitions out", Some(("groups", |c| c.groups)), shares),
    ("a revoke lets the member commit", REVOKE, revoke),
    ("who leaves is replaced at once", REVOKE, leaving),
    (
        "offsets are committed and read back",
        Some(("groups", |c| c.groups)),
        offsets,
    ),
    (
        "offsets keep their metadata",
        Some(("offset_metadata", |c| c.offset_metadata)),
        metadata,
    ),
    (
        "a member left behind cannot commit",
        Some(("fencing", |c| c.fencing)),
        left_behind,
    ),
];

/// Polls the members in turn, answering whatever the group says, until the partitions are shared out over all of them.
pub(super) fn settle(
    members: &mut [&mut Box<dyn Consumer>],
    partitions: &[TopicPartition],
) -> Vec<Vec<TopicPartition>> {
    let mut owned: Vec<Vec<TopicPartition>> = vec![Vec::new(); members.len()];
    let mut batch = Batch::default();
    wait_until("the group to settle", || {
        for (member, owned) in members.iter_mut().zip(&mut owned) {
            match poll(&mut ***member, &mut batch) {
                Polled::Assigned(given) => {
                    member.acknowledge().unwrap();
                    *owned = given;
                }
                Polled::Revoked { .. } => {
                    member.acknowledge().unwrap();
                    owned.clear();
                }
                _ => {}
            }
        }
        let all: BTreeSet<_> = owned.iter().flatten().collect();
        all.len() == partitions.len() && owned.iter().all(|owned| !owned.is_empty())
    });
    owned
}

pub(super) fn progress(partition: &TopicPartition, offset: i64, metadata: &str) -> Progress {
    Progress {
        partition: partition.clone(),
        offset,
        metadata: metadata.to_owned(),
    }
}

pub(super) fn committed(member: &mut dyn Consumer, partition: &TopicPartition) -> Option<Committed> {
    let mut found = None;
    patiently(|| {
        let mut all = member.committed(std::slice::from_ref(partition), Duration::from_secs(2))?;
        found = all.pop().flatten();
        Ok(())
    });
    found
}

fn not_yet(world: &World) {
    let mut member = world.member("g");
    let metadata = member.group_metadata().unwrap();
    assert!(!metadata.is_member(), "{metadata:?}");
    assert!(world.reader().group_metadata().is_none());
}

fn shares(world: &World) {
    let topic = world.topic("t", 4);
    let partitions = partitions_of(&topic, 4);
    let (mut one, mut two) = (world.member("g"), world.member("g"));
    one.subscribe(std::slice::from_ref(&topic)).unwrap();
    two.subscribe(std::slice::from_ref(&topic)).unwrap();
    let owned = settle(&mut [&mut one, &mut two], &partitions);
    assert_eq!((owned[0].len(), owned[1].len()), (2, 2), "{owned:?}");
    let (first, second) = (one.group_metadata().unwrap(), two.group_metadata().unwrap());
    assert!(first.is_member() && second.is_member());
    assert_eq!(first.generation, second.generation);
    assert_ne!(first.member, second.member);
    // Nothing is read until it is assigned with its offsets.
    let outputs: Vec<_> = (0..40).map(|n| output(&topic, Some(n % 4), None, Some("v"))).collect();
    world.write(&outputs);
    let mut batch = Batch::default();
    assert_ne!(poll(&mut *one, &mut batch), Polled::Records);
    for (member, owned) in [(&mut one, &owned[0]), (&mut two, &owned[1])] {
        let positions: Vec<_> = owned.iter().map(|p| (p.clone(), 0)).collect();
        member.assign(&positions).unwrap();
    }
    let (mut of_one, mut of_two) = (0, 0);
    wait_until("all records", || {
        if poll(&mut *one, &mut batch) == Polled::Records {
            of_one += batch.len();
        }
        if poll(&mut *two, &mut batch) == Polled::Records {
            of_two += batch.len();
        }
        of_one + of_two >= 40
    });
    assert_eq!((of_one, of_two), (20, 20));
}

fn revoke(world: &World) {
    let topic = world.topic("t", 2);
    let partitions = partitions_of(&topic, 2);
    let mut one = world.member("g");
    one.subscribe(std::slice::from_ref(&topic)).unwrap();
    settle(&mut [&mut one], &partitions);
    let positions: Vec<_> = partitions.iter().map(|p| (p.clone(), 0)).collect();
    one.assign(&positions).unwrap();
    let before = one.group_metadata().unwrap();
    let mut two = world.member("g");
    two.subscribe(std::slice::from_ref(&topic)).unwrap();
    let mut batch = Batch::default();
    wait_until("the revoke", || {
        assert!(
            !matches!(poll(&mut *two, &mut batch), Polled::Assigned(_)),
            "before the first gave them back"
        );
        match poll(&mut *one, &mut batch) {
            Polled::Revoked {
                partitions: revoked,
                lost,
            } => {
                assert_eq!(revoked.len(), 2);
                assert!(!lost);
                true
            }
            _ => false,
        }
    });
    // Until it answers, the member is what it was, and may commit.
    assert!(one.group_metadata().unwrap().is_same(&before));
    let last = [progress(&partitions[0], 7, ""), progress(&partitions[1], 8, "")];
    patiently(|| one.commit(&last));
    one.acknowledge().unwrap();
    settle(&mut [&mut one, &mut two], &partitions);
    assert!(two.group_metadata().unwrap().generation > before.generation);
    assert_eq!(committed(&mut *two, &partitions[0]).unwrap().offset, 7);
    assert_eq!(committed(&mut *two, &partitions[1]).unwrap().offset, 8);
}

fn leaving(world: &World) {
    let topic = world.topic("t", 2);
    let partitions = partitions_of(&topic, 2);
    let (mut one, mut two) = (world.member("g"), world.member("g"));
    one.subscribe(std::slice::from_ref(&topic)).unwrap();
    two.subscribe(&[topic]).unwrap();
    settle(&mut [&mut one, &mut two], &partitions);
    let left = Instant::now();
    one.close();
    settle(&mut [&mut two], &partitions);
    assert!(left.elapsed() < Duration::from_secs(5), "only the session timeout told");
}

fn offsets(world: &World) {
    let topic = world.topic("t", 2);
    let partitions = partitions_of(&topic, 2);
    let mut member = world.member("g");
    assert_eq!(committed(&mut *member, &partitions[0]), None);
    member.subscribe(&[topic]).unwrap();
    settle(&mut [&mut member], &partitions);
    patiently(|| member.commit(&[progress(&partitions[0], 3, "")]));
    patiently(|| member.commit(&[progress(&partitions[0], 5, "")]));
    assert_eq!(committed(&mut *member, &partitions[0]).unwrap().offset, 5);
    assert_eq!(committed(&mut *member, &partitions[1]), None);
    let mut other = world.member("other");
    assert_eq!(committed(&mut *other, &partitions[0]), None, "offsets are the group's");
}

fn metadata(world: &World) {
    let topic = world.topic("t", 1);
    let partitions = partitions_of(&topic, 1);
    let mut member = world.member("g");
    member.subscribe(&[topic]).unwrap();
    settle(&mut [&mut member], &partitions);
    let long = "m".repeat(4_000);
    for text in ["wm=58;low=7", "", &long] {
        patiently(|| member.commit(&[progress(&partitions[0], 1, text)]));
        assert_eq!(committed(&mut *member, &partitions[0]).unwrap().metadata, text);
    }
}

fn left_behind(world: &World) {
    let topic = world.topic("t", 2);
    let partitions = partitions_of(&topic, 2);
    let mut one = world.member("g");
    one.subscribe(std::slice::from_ref(&topic)).unwrap();
    settle(&mut [&mut one], &partitions);
    let old = one.group_metadata().unwrap();
    let mut two = world.member("g");
    two.subscribe(&[topic]).unwrap();
    settle(&mut [&mut one, &mut two], &partitions);
    let mut producer = world.transactional("p");
    patiently(|| producer.begin());
    let refused = producer
        .send_offsets(&[progress(&partitions[0], 1, "")], &old)
        .unwrap_err();
    assert_eq!(refused.class(), Class::Abort, "{refused}");
    producer.abort().unwrap();
    let now = one.group_metadata().unwrap();
    patiently(|| producer.begin());
    patiently(|| producer.send_offsets(&[progress(&partitions[0], 2, "")], &now));
    patiently(|| producer.commit());
    assert_eq!(committed(&mut *two, &partitions[0]).unwrap().offset, 2);
}

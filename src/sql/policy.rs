//! Policies: conditions over a detector's rows, and what may be done about them.

use std::{sync::Arc, time::Duration};

use arrow::datatypes::{DataType, Field, Schema};
use datafusion::{
    common::{Column, DFSchema},
    logical_expr::Expr,
    physical_expr::PhysicalExpr,
};
use engine::spec::{Mode, PolicySpec};

use crate::{
    ast,
    catalog::Functions,
    detector::Detector,
    diagnostic::{Diagnostic, Span, did_you_mean},
    pane_set::Planner,
    select::{Names, Place, parse_expr},
    text::{LineMap, Token},
    view::{condition, planner_error},
};

/// Used where the clause is absent.
const COOLDOWN_MS: i64 = 600_000;
const EXPIRES_AFTER_MS: i64 = 120_000;
const MODE: Mode = Mode::Shadow;
const INTO: &str = "actions";

/// Resolves one policy; notes in its detector which columns it names.
pub(crate) fn resolve(
    ast: &ast::Policy,
    detectors: &mut [Detector],
    failed: &[String],
    functions: &Functions,
    lines: &LineMap<'_>,
    errors: &mut Vec<Diagnostic>,
) -> Option<PolicySpec> {
    if failed.contains(&ast.on.text) {
        return None;
    }
    let before = errors.len();
    let names = || detectors.iter().map(|detector| detector.spec.name.as_str());
    let Some(index) = ast.on.find(names()) else {
        errors.push(
            Diagnostic::new(format!("unknown detector `{}`", ast.on.text), ast.on.span)
                .help_opt(did_you_mean(&ast.on.text, names())),
        );
        return None;
    };
    let detector = &mut detectors[index];
    let input = input(detector);
    let mut conditions = Conditions {
        input: Arc::clone(&input),
        detector,
        functions,
        lines,
        errors,
    };
    let when = conditions.plan(ast.when.as_deref(), Alarm::On);
    let clear = conditions.plan(ast.clear.as_deref(), Alarm::Off);
    let target = target(ast, &detectors[index], errors);
    if ast.action.is_none() {
        errors.push(
            Diagnostic::new(format!("policy `{}` does nothing", ast.name.text), ast.name.span)
                .help("add DO ACTION 'restart'"),
        );
    }
    let (for_k, for_n) = match &ast.for_windows {
        Some((k, n)) => (k.value, n.value),
        None => (1, 1),
    };
    let spec = PolicySpec {
        name: ast.name.text.clone(),
        detector: index,
        input,
        when,
        for_k,
        for_n,
        clear,
        clear_windows: ast.clear_windows.unwrap_or(if ast.clear.is_some() { 1 } else { for_n }),
        cooldown: duration(ast.cooldown_ms.unwrap_or(COOLDOWN_MS)),
        limits: ast.limits.iter().map(|(count, ms)| (*count, duration(*ms))).collect(),
        action: ast.action.clone()?,
        target: target?,
        params: ast
            .params
            .iter()
            .map(|param| (param.key.value.clone(), param.value.value.clone()))
            .collect(),
        expires_after: duration(ast.expires_after_ms.unwrap_or(EXPIRES_AFTER_MS)),
        mode: ast.mode.unwrap_or(MODE),
        into: ast.into.clone().unwrap_or_else(|| INTO.to_owned()),
        window_step_ms: detectors[index].step_ms,
    };
    (errors.len() == before).then_some(spec)
}

fn duration(ms: i64) -> Duration {
    Duration::from_millis(ms.unsigned_abs())
}

fn input(detector: &Detector) -> Arc<Schema> {
    let mut fields = vec![
        Field::new("score", DataType::Float64, false),
        Field::new("is_anomaly", DataType::Boolean, false),
    ];
    let columns = detector.columns.iter();
    fields.extend(columns.map(|(name, data_type, _)| Field::new(name, data_type.clone(), true)));
    Arc::new(Schema::new(fields))
}

/// What the detector says where a policy has no condition.
#[derive(Clone, Copy)]
enum Alarm {
    On,
    Off,
}

struct Conditions<'a> {
    input: Arc<Schema>,
    detector: &'a mut Detector,
    functions: &'a Functions,
    lines: &'a LineMap<'a>,
    errors: &'a mut Vec<Diagnostic>,
}

impl Conditions<'_> {
    /// The condition as written; without one, that the detector alarms, or that it does not.
    fn plan(&mut self, tokens: Option<&[Token]>, otherwise: Alarm) -> Option<Arc<dyn PhysicalExpr>> {
        let planned = match tokens {
            Some(tokens) => self.try_plan(tokens),
            None => self.default(otherwise),
        };
        match planned {
            Ok(expr) => expr,
            Err(error) => {
                self.errors.push(error);
                None
            }
        }
    }

    fn default(&self, alarm: Alarm) -> Result<Option<Arc<dyn PhysicalExpr>>, Diagnostic> {
        let unplanned = |error| planner_error(&error, Span::default(), self.lines);
        let is_anomaly = Expr::Column(Column::from_name("is_anomaly"));
        let expr = match alarm {
            Alarm::On => is_anomaly,
            Alarm::Off => Expr::Not(Box::new(is_anomaly)),
        };
        let planner = Planner::new(&self.input).map_err(unplanned)?;
        planner.expr(&expr).map(Some).map_err(unplanned)
    }

    fn try_plan(&mut self, tokens: &[Token]) -> Result<Option<Arc<dyn PhysicalExpr>>, Diagnostic> {
        let span = tokens
            .iter()
            .map(|token| token.span)
            .reduce(Span::to)
            .unwrap_or_default();
        let mut expr = parse_expr(tokens, self.lines)?;
        let before = self.errors.len();
        let mut names = Names {
            columns: self.input.fields().iter().map(|field| field.name().clone()).collect(),
            table: self.detector.spec.name.clone(),
            event_time: "window_end".into(),
            temporal: false,
            aliases: Vec::new(),
            place: Place::Condition,
            functions: self.functions,
            lines: self.lines,
            depth: 0,
            errors: self.errors,
        };
        names.resolve(&mut expr, Place::Condition);
        if self.errors.len() > before {
            return Ok(None);
        }
        let unplanned = |error| planner_error(&error, span, self.lines);
        let schema = Arc::new(DFSchema::try_from(Arc::clone(&self.input)).map_err(unplanned)?);
        let expr = condition(expr, &schema, self.functions, span, self.lines)?;
        for column in expr.column_refs() {
            let found = self.detector.columns.iter().find(|(name, ..)| *name == column.name);
            if let Some((name, _, index)) = found {
                self.detector.used.insert(name.clone(), *index);
            }
        }
        let planner = Planner::new(&self.input).map_err(unplanned)?;
        planner.expr(&expr).map(Some).map_err(unplanned)
    }
}

/// TARGET, or the detector's only KEY column.
fn target(ast: &ast::Policy, detector: &Detector, errors: &mut Vec<Diagnostic>) -> Option<String> {
    let keys = || detector.spec.keys.iter().map(|(name, _)| name.as_str());
    let list = || format!("it has {}", keys().collect::<Vec<_>>().join(", "));
    let Some(target) = &ast.target else {
        if let [(name, _)] = detector.spec.keys.as_slice() {
            return Some(name.clone());
        }
        errors.push(
            Diagnostic::new(format!("policy `{}` has no target", ast.name.text), ast.name.span)
                .help("add TARGET and the KEY column that names the service"),
        );
        return None;
    };
    match target.find(keys()) {
        Some(index) => Some(detector.spec.keys[index].0.clone()),
        None => {
            errors.push(
                Diagnostic::new(
                    format!(
                        "`{}` is not a KEY column of detector `{}`",
                        target.text, detector.spec.name
                    ),
                    target.span,
                )
                .help(did_you_mean(&target.text, keys()).unwrap_or_else(list)),
            );
            None
        }
    }
}

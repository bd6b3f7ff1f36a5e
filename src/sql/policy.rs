//! Policies: conditions over a detector's rows, and what may be done about them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

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
    source::Unknown,
    text::{LineMap, Name, Parsed, Token},
    view::{condition, planner_error},
};

/// Used where the clause is absent.
const COOLDOWN_MS: i64 = 600_000;
const EXPIRES_AFTER_MS: i64 = 120_000;
const MODE: Mode = Mode::Shadow;
pub(crate) const INTO: &str = "actions";

/// What every detector says.
const OWN_COLUMNS: [&str; 2] = ["score", "is_anomaly"];

/// Resolves one policy; notes in its detector which columns it names.
pub(crate) fn resolve(
    ast: &ast::Policy,
    detectors: &mut [Detector],
    failed: &BTreeMap<String, Failed>,
    views: &[ast::View],
    functions: &Functions,
    lines: &LineMap<'_>,
    errors: &mut Vec<Diagnostic>,
) -> Option<PolicySpec> {
    if let Some(detector) = failed.get(&ast.on.text) {
        check_apart(ast, detector, functions, lines, errors);
        return None;
    }
    let before = errors.len();
    let names = || detectors.iter().map(|detector| detector.spec.name.as_str());
    let Some(index) = ast.on.find(names()) else {
        let near = did_you_mean(&ast.on.text, names().chain(failed.keys().map(String::as_str)));
        let help = match views.iter().any(|view| view.name.text == ast.on.text) {
            true => Some(format!(
                "`{0}` is a view, and a policy answers a detector: CREATE DETECTOR … ON {0} …",
                ast.on.text
            )),
            false => near,
        };
        errors.push(Diagnostic::new(format!("unknown detector `{}`", ast.on.text), ast.on.span).help_opt(help));
        check_apart(ast, &Failed::default(), functions, lines, errors);
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
    if ast.action.is_none() && !ast.broken {
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
        into: ast
            .into
            .as_ref()
            .map_or_else(|| INTO.to_owned(), |into| into.value.clone()),
        window_step_ms: detectors[index].step_ms,
    };
    (errors.len() == before).then_some(spec)
}

/// What is known of a detector that is wrong.
#[derive(Default)]
pub(crate) struct Failed {
    /// Names of the columns of what it watches.
    pub columns: Option<Vec<String>>,
    pub keys: Option<Vec<String>>,
}

/// What can be said of a policy whose detector is wrong.
fn check_apart(
    ast: &ast::Policy,
    detector: &Failed,
    functions: &Functions,
    lines: &LineMap<'_>,
    errors: &mut Vec<Diagnostic>,
) {
    if let (Some(keys), Some(target)) = (&detector.keys, &ast.target) {
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        errors.extend(find_target(&ast.on.text, target, &keys).err());
    }
    let said = OWN_COLUMNS.map(str::to_owned);
    let unknown = match &detector.columns {
        None => Unknown::all(),
        Some(columns) => Unknown {
            columns: columns.iter().cloned().chain(said).collect(),
            ..Unknown::default()
        },
    };
    for tokens in [&ast.when, &ast.clear].into_iter().flatten() {
        match parse_expr(tokens, lines) {
            Ok(mut expr) => Names::apart(functions, lines, &unknown, errors).resolve(&mut expr, Place::Condition),
            Err(error) => errors.push(error),
        }
    }
}

fn duration(ms: i64) -> Duration {
    Duration::from_millis(ms.unsigned_abs())
}

fn input(detector: &Detector) -> Arc<Schema> {
    let mut fields = vec![
        Field::new(OWN_COLUMNS[0], DataType::Float64, false),
        Field::new(OWN_COLUMNS[1], DataType::Boolean, false),
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
        let known = Unknown::default();
        let mut names = Names {
            columns: self.input.fields().iter().map(|field| field.name().clone()).collect(),
            table: self.detector.spec.name.clone(),
            ..Names::apart(self.functions, self.lines, &known, self.errors)
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
    let keys: Vec<&str> = detector.spec.keys.iter().map(|(name, _)| name.as_str()).collect();
    let Some(target) = &ast.target else {
        if let [name] = keys.as_slice() {
            return Some((*name).to_owned());
        }
        if ast.broken {
            return None;
        }
        errors.push(
            Diagnostic::new(format!("policy `{}` has no target", ast.name.text), ast.name.span)
                .help("add TARGET and the KEY column that names the service"),
        );
        return None;
    };
    match find_target(&detector.spec.name, target, &keys) {
        Ok(index) => Some(keys[index].to_owned()),
        Err(error) => {
            errors.push(error);
            None
        }
    }
}

fn find_target(detector: &str, target: &Name, keys: &[&str]) -> Parsed<usize> {
    target.find(keys.iter().copied()).ok_or_else(|| {
        let near = did_you_mean(&target.text, keys.iter().copied());
        Diagnostic::new(
            format!("`{}` is not a KEY column of detector `{detector}`", target.text),
            target.span,
        )
        .help(near.unwrap_or_else(|| format!("it has {}", keys.join(", "))))
    })
}

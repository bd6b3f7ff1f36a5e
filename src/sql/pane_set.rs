//! Which views share panes, how wide a pane is, and the physical plan of both.

use std::{collections::BTreeSet, sync::Arc};

use arrow::datatypes::{DataType, Schema, TimeUnit};
use datafusion::{
    common::{DFSchema, Result as PlanResult, plan_datafusion_err},
    execution::context::ExecutionProps,
    logical_expr::{
        Expr, ExprSchemable,
        expr::{AggregateFunction, Cast},
        physical_planning_context::PhysicalPlanningContext,
    },
    physical_expr::{
        PhysicalExpr,
        aggregate::{LoweredAggregate, LoweredAggregateBuilder},
        create_physical_expr,
    },
};
use engine::spec::{
    AggregateKind, AggregateSpec, DetectorInput, DetectorSpec, JudgedSpec, PairStatistic, PaneSetSpec, SourceSpec,
    StateLimit, ViewSpec, WindowSpec,
};

use crate::{
    fingerprint::Fingerprint,
    source::Source,
    view::{Judged, Key, View, ViewAggregate, bare, canonical, quantile_share},
};

/// Recovery re-reads what the open panes need; wider ones would make it longer. Only windows of more panes than there may be have wider ones.
const WIDTH_MAX_MS: i64 = 10_000;
/// Panes per window.
pub(crate) const WIDTH_MAX_PANES: i64 = 4_096;
/// Gaps that a session may last before it is cut, where panes of it can be as wide as that asks for.
const SESSION_GAPS: i64 = 64;
/// Sharing makes panes narrower by this factor at most.
const NARROWER_MAX: i64 = 10;
/// Pane width of `silence`: how precisely the last sign of life is known.
pub(crate) const SILENCE_WIDTH_MS: i64 = 1_000;

/// Partial aggregates that several views, or one silence detector, read.
#[derive(Clone, Debug)]
pub(crate) struct PaneSet {
    pub source: usize,
    pub filter: Option<Expr>,
    pub keys: Vec<Key>,
    pub aggregates: Vec<ViewAggregate>,
    pub width_ms: i64,
    pub windows: Vec<WindowSpec>,
    pub state_limit: Option<StateLimit>,
}

/// Largest divisor, not above the cap, of the gcd of everything that windows are cut by. Where that would be too many panes in the longest of
/// the windows, the least divisor that is few enough, or the gcd.
pub(crate) fn pane_width_ms<'a>(windows: impl IntoIterator<Item = &'a WindowSpec>) -> i64 {
    let (mut common, mut longest) = (0, 0);
    for window in windows {
        let lasts_ms = |gap_ms: i64| gap_ms.saturating_mul(SESSION_GAPS);
        longest = longest.max(window.session_gap_ms.map_or(window.size_ms, lasts_ms));
        let cuts = [
            window.size_ms,
            window.slide_ms,
            window.offset_ms,
            window.lateness_ms,
            window.early_every_ms.unwrap_or(0),
        ];
        common = cuts.into_iter().fold(common, gcd);
    }
    if common <= WIDTH_MAX_MS {
        return common.max(1);
    }
    let small = (1..)
        .take_while(|divisor| divisor * divisor <= common)
        .filter(|divisor| common % divisor == 0);
    let mut widths: Vec<i64> = small.flat_map(|divisor| [divisor, common / divisor]).collect();
    widths.sort_unstable();
    let few_enough = |width: &&i64| longest / **width <= WIDTH_MAX_PANES;
    let narrow = widths.iter().rfind(|width| **width <= WIDTH_MAX_MS).filter(few_enough);
    narrow.or(widths.iter().find(few_enough)).copied().unwrap_or(common)
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Puts each view into the first pane set that it may share. Returns the set of every view, and for each of its
/// aggregates the index in that set.
pub(crate) fn share(views: &[View], sets: &mut Vec<PaneSet>) -> Vec<(usize, Vec<usize>)> {
    views
        .iter()
        .map(|view| {
            let index = sets.iter().position(|set| shares(set, view)).unwrap_or_else(|| {
                sets.push(PaneSet {
                    source: view.source,
                    filter: view.filter.clone(),
                    keys: view.keys.clone(),
                    aggregates: Vec::new(),
                    width_ms: 0,
                    windows: Vec::new(),
                    state_limit: view.state_limit,
                });
                sets.len() - 1
            });
            let set = &mut sets[index];
            set.windows.push(view.window.clone());
            set.width_ms = pane_width_ms(&set.windows);
            let add = |aggregate: &ViewAggregate| {
                let found = set
                    .aggregates
                    .iter()
                    .position(|other| other.canonical == aggregate.canonical);
                found.unwrap_or_else(|| {
                    set.aggregates.push(aggregate.clone());
                    set.aggregates.len() - 1
                })
            };
            let aggregates = view.aggregates.iter().map(add).collect();
            (index, aggregates)
        })
        .collect()
}

fn shares(set: &PaneSet, view: &View) -> bool {
    let equal = set.source == view.source
        && set.state_limit == view.state_limit
        && set.filter.as_ref().map(canonical) == view.filter.as_ref().map(canonical)
        && set.keys.len() == view.keys.len()
        && set
            .keys
            .iter()
            .zip(&view.keys)
            .all(|(a, b)| canonical(&a.expr) == canonical(&b.expr));
    if !equal || set.windows.is_empty() {
        return false;
    }
    let width_ms = pane_width_ms(set.windows.iter().chain([&view.window]));
    let own_ms = pane_width_ms([&view.window]);
    let windows = set.windows.iter().chain([&view.window]);
    windows
        .map(|window| window.size_ms / width_ms)
        .all(|panes| panes <= WIDTH_MAX_PANES)
        && width_ms * NARROWER_MAX >= set.width_ms.max(own_ms)
}

/// Columns of `sources[index]` that any set uses.
pub(crate) fn used_columns(sets: &[PaneSet], index: usize) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for set in sets.iter().filter(|set| set.source == index) {
        let exprs = set.filter.iter().chain(set.keys.iter().map(|key| &key.expr));
        for expr in exprs.chain(set.aggregates.iter().map(|aggregate| &aggregate.expr)) {
            used.extend(expr.column_refs().into_iter().map(|column| column.name.clone()));
        }
    }
    used
}

/// The physical plan of a pane set over the source's projected schema. `source` is the source's index in the pipeline.
pub(crate) fn physical(set: &PaneSet, source: usize, declared: &Source, spec: &SourceSpec) -> PlanResult<PaneSetSpec> {
    let planner = Planner::new(&spec.schema)?;
    let keys = set
        .keys
        .iter()
        .map(|key| planner.expr(&key.expr))
        .collect::<PlanResult<Vec<_>>>()?;
    let aggregates = set
        .aggregates
        .iter()
        .map(|aggregate| planner.aggregate(aggregate))
        .collect::<PlanResult<Vec<_>>>()?;
    Ok(PaneSetSpec {
        fingerprint: fingerprint(set, declared),
        source,
        filter: set.filter.as_ref().map(|filter| planner.expr(filter)).transpose()?,
        keys,
        key_fields: set.keys.iter().map(|key| Arc::clone(&key.field)).collect(),
        aggregates,
        width_ms: set.width_ms,
        windows: set.windows.clone(),
        state_limit: set.state_limit,
    })
}

fn fingerprint(set: &PaneSet, source: &Source) -> u64 {
    // Lateness is judged otherwise where no view is served.
    let mut text = Fingerprint::new(if set.windows.is_empty() {
        "sightings"
    } else {
        "pane set"
    });
    text.part(&source.fingerprint.to_string());
    text.part(&set.filter.as_ref().map_or_else(String::new, canonical));
    text.part(&set.keys.len().to_string());
    for key in &set.keys {
        text.part(&canonical(&key.expr))
            .part(&key.field.data_type().to_string());
    }
    for aggregate in &set.aggregates {
        text.part(&aggregate.canonical)
            .part(&aggregate.output.data_type().to_string());
    }
    text.part(&set.width_ms.to_string());
    if let Some(limit) = set.state_limit {
        text.part(&format!("{limit:?}"));
    }
    text.finish()
}

/// A view over its pane sets; `index` is its own in the pipeline.
pub(crate) fn physical_view(
    index: usize,
    view: &View,
    pane_sets: Vec<usize>,
    aggregates: Vec<usize>,
) -> PlanResult<ViewSpec> {
    let input = Arc::new(view.input());
    let planner = Planner::new(&input)?;
    Ok(ViewSpec {
        name: view.name.clone(),
        pane_sets,
        window: view.window.clone(),
        aggregates,
        projection: view
            .projection
            .iter()
            .map(|expr| planner.expr(expr))
            .collect::<PlanResult<Vec<_>>>()?,
        output: Arc::clone(view.judged.as_ref().map_or(&view.output, |judged| &judged.rows)),
        having: view.having.as_ref().map(|having| planner.expr(having)).transpose()?,
        fill_missing_windows: view.fill_missing_windows,
        judged: view
            .judged
            .as_ref()
            .map(|judged| physical_judged(index, view, judged))
            .transpose()?,
        input,
    })
}

fn physical_judged(index: usize, view: &View, judged: &Judged) -> PlanResult<JudgedSpec> {
    let planner = Planner::new(&judged.input)?;
    let detectors = judged.detectors.iter().map(|detector| DetectorSpec {
        input: DetectorInput::View(index),
        ..detector.clone()
    });
    let projection = judged.projection.iter().map(|expr| planner.expr(expr));
    Ok(JudgedSpec {
        detectors: detectors.collect(),
        times: judged.times.clone(),
        input: Arc::clone(&judged.input),
        filter: judged.filter.as_ref().map(|filter| planner.expr(filter)).transpose()?,
        projection: projection.collect::<PlanResult<_>>()?,
        output: Arc::clone(&view.output),
    })
}

/// Makes physical expressions over one schema.
pub(crate) struct Planner {
    schema: DFSchema,
    props: ExecutionProps,
    context: PhysicalPlanningContext,
}

impl Planner {
    pub fn new(schema: &Arc<Schema>) -> PlanResult<Self> {
        Ok(Self {
            schema: DFSchema::try_from(Arc::clone(schema))?,
            props: ExecutionProps::new(),
            context: PhysicalPlanningContext::default(),
        })
    }

    pub fn expr(&self, expr: &Expr) -> PlanResult<Arc<dyn PhysicalExpr>> {
        create_physical_expr(expr, &self.schema, &self.props, &self.context)
    }

    pub fn aggregate(&self, aggregate: &ViewAggregate) -> PlanResult<AggregateSpec> {
        let Expr::AggregateFunction(function) = bare(&aggregate.expr) else {
            return Err(plan_datafusion_err!("`{}` is not an aggregate", aggregate.expr));
        };
        let filter = function.params.filter.as_deref();
        let filter = filter.map(|filter| self.expr(filter)).transpose()?;
        if let Some((kind, args)) = self.native(function)? {
            return Ok(AggregateSpec {
                kind,
                args: args.iter().map(|arg| self.expr(arg)).collect::<PlanResult<Vec<_>>>()?,
                filter,
                output: aggregate.output.data_type().clone(),
            });
        }
        let LoweredAggregate { aggregate: lowered, .. } = LoweredAggregateBuilder::new(
            &aggregate.expr,
            &self.schema,
            self.schema.as_arrow(),
            &self.props,
            &self.context,
        )
        .with_name(&aggregate.canonical)
        .build()?;
        Ok(AggregateSpec {
            args: lowered.expressions(),
            kind: AggregateKind::Other(lowered),
            filter,
            output: aggregate.output.data_type().clone(),
        })
    }

    /// The native accumulator of an aggregate, with its arguments in the types that it folds.
    fn native(&self, function: &AggregateFunction) -> PlanResult<Option<(AggregateKind, Vec<Expr>)>> {
        let params = &function.params;
        if params.distinct && !matches!(function.func.name(), "min" | "max") {
            return Ok(None);
        }
        let args = params.args.as_slice();
        let first = args.first().map(|arg| arg.get_type(&self.schema)).transpose()?;
        let float = || {
            args.first()
                .map(|arg| vec![cast(arg, &DataType::Float64, first.as_ref())])
        };
        let native = |kind: AggregateKind, args: Option<Vec<Expr>>| args.map(|args| (kind, args));
        Ok(match (function.func.name(), &first) {
            ("count", _) => match args {
                [Expr::Literal(value, _)] if !value.is_null() => Some((AggregateKind::Count, Vec::new())),
                [arg] => Some((AggregateKind::Count, vec![arg.clone()])),
                _ => None,
            },
            ("sum", Some(DataType::Int64 | DataType::UInt64 | DataType::Float64)) => {
                Some((AggregateKind::Sum, args.to_vec()))
            }
            ("avg", Some(data_type)) if is_number(data_type) => native(AggregateKind::Avg, float()),
            ("min", Some(data_type)) if is_number(data_type) || is_time(data_type) => {
                Some((AggregateKind::Min, args.to_vec()))
            }
            ("max", Some(data_type)) if is_number(data_type) || is_time(data_type) => {
                Some((AggregateKind::Max, args.to_vec()))
            }
            ("var", Some(data_type)) if is_number(data_type) => native(AggregateKind::Var, float()),
            ("stddev", Some(data_type)) if is_number(data_type) => native(AggregateKind::Stddev, float()),
            ("quantile", Some(_)) => {
                let q = quantile_share(function)
                    .ok_or_else(|| plan_datafusion_err!("the share of a quantile is a constant"))?;
                native(AggregateKind::Quantile { q }, float())
            }
            ("var_pop", Some(data_type)) if is_number(data_type) => native(AggregateKind::VarPop, float()),
            ("stddev_pop", Some(data_type)) if is_number(data_type) => native(AggregateKind::StddevPop, float()),
            ("rate", Some(_)) => Some((AggregateKind::Rate, args.to_vec())),
            ("increase", Some(_)) => Some((AggregateKind::Increase, args.to_vec())),
            ("delta", Some(_)) => Some((AggregateKind::Delta, args.to_vec())),
            ("first", Some(_)) => Some((AggregateKind::First, args.to_vec())),
            ("last", Some(_)) => Some((AggregateKind::Last, args.to_vec())),
            ("slope", Some(_)) => match args {
                [value, time] => {
                    let ms = cast(
                        time,
                        &DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())),
                        None,
                    );
                    let ms = cast(&ms, &DataType::Int64, None);
                    let args = vec![value.clone(), cast(&ms, &DataType::Float64, None)];
                    Some((AggregateKind::Pairs(PairStatistic::SlopePerSecond), args))
                }
                _ => None,
            },
            (name, Some(_)) => match (pair_statistic(name), args) {
                (Some(statistic), [y, x]) => {
                    let float = |arg: &Expr| -> PlanResult<Expr> {
                        Ok(cast(arg, &DataType::Float64, Some(&arg.get_type(&self.schema)?)))
                    };
                    Some((AggregateKind::Pairs(statistic), vec![float(y)?, float(x)?]))
                }
                _ => None,
            },
            _ => None,
        })
    }
}

fn pair_statistic(function: &str) -> Option<PairStatistic> {
    Some(match function {
        "corr" => PairStatistic::Correlation,
        "covar_samp" => PairStatistic::CovarianceSample,
        "covar_pop" => PairStatistic::CovariancePopulation,
        "regr_slope" => PairStatistic::Slope,
        "regr_intercept" => PairStatistic::Intercept,
        "regr_r2" => PairStatistic::R2,
        _ => return None,
    })
}

fn cast(arg: &Expr, wanted: &DataType, has: Option<&DataType>) -> Expr {
    if has == Some(wanted) {
        return arg.clone();
    }
    Expr::Cast(Cast::new(Box::new(arg.clone()), wanted.clone()))
}

fn is_number(data_type: &DataType) -> bool {
    data_type.is_integer() || matches!(data_type, DataType::Float32 | DataType::Float64)
}

fn is_time(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Timestamp(..))
}

/// The pane set of a `silence` detector: the greatest event time per key.
pub(crate) fn silence(source: usize, declared: &Source, filter: Option<Expr>, keys: Vec<Key>) -> PlanResult<PaneSet> {
    let schema = DFSchema::try_from(declared.schema())?;
    let time = Expr::Column(datafusion::common::Column::from_name(declared.event_time.clone()));
    let expr = datafusion::functions_aggregate::expr_fn::max(time);
    let (_, output) = expr.to_field(&schema)?;
    Ok(PaneSet {
        source,
        filter,
        keys,
        aggregates: vec![ViewAggregate {
            canonical: canonical(&expr),
            output,
            expr,
        }],
        width_ms: SILENCE_WIDTH_MS,
        windows: Vec::new(),
        state_limit: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(size_ms: i64, slide_ms: i64, offset_ms: i64, lateness_ms: i64) -> WindowSpec {
        WindowSpec {
            view: String::new(),
            size_ms,
            slide_ms,
            offset_ms,
            lateness_ms,
            late_topic: None,
            early_every_ms: None,
            session_gap_ms: None,
        }
    }

    #[test]
    fn widths() {
        for (size, slide, offset, lateness, width) in [
            (60_000, 60_000, 0, 0, 10_000),
            (60_000, 10_000, 0, 30_000, 10_000),
            (60_000, 7_000, 0, 0, 1_000),
            (10_000, 10_000, 2_500, 0, 2_500),
            (14_000, 14_000, 0, 0, 7_000),
            (11_003, 11_003, 0, 0, 11_003),
            (3_600_000, 1_000, 0, 0, 1_000),
            (1, 1, 0, 0, 1),
            // A day, and a week that slides by the hour.
            (40_960_000, 40_960_000, 0, 0, 10_000),
            (86_400_000, 86_400_000, 0, 0, 21_600),
            (604_800_000, 3_600_000, 0, 0, 150_000),
            (86_400_000, 10_000, 0, 0, 10_000),
            (86_400_000, 86_400_000, 0, 30_000, 30_000),
        ] {
            assert_eq!(
                pane_width_ms([&window(size, slide, offset, lateness)]),
                width,
                "{size} {slide}"
            );
        }
    }
}

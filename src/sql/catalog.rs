//! What DataFusion's planner may know: its own functions and ours, one table at a time, no session and no execution.

use std::{collections::BTreeMap, sync::Arc};

use arrow::datatypes::{DataType, Schema};
use datafusion::{
    common::{DFSchema, Result, TableReference, config::ConfigOptions, plan_err},
    execution::SessionStateDefaults,
    logical_expr::{
        AggregateUDF, Expr, HigherOrderUDF, LogicalPlan, ScalarUDF, TableSource, Volatility, WindowUDF,
        logical_plan::builder::LogicalTableSource,
        planner::{ContextProvider, ExprPlanner},
    },
    optimizer::analyzer::Analyzer,
    sql::{
        planner::{ParserOptions, PlannerContext, SqlToRel},
        sqlparser::ast,
    },
};

use crate::{functions, simplify::simplifier};

/// Functions by name, made once per text.
pub(crate) struct Functions {
    scalars: BTreeMap<String, Arc<ScalarUDF>>,
    aggregates: BTreeMap<String, Arc<AggregateUDF>>,
    planners: Vec<Arc<dyn ExprPlanner>>,
    options: ConfigOptions,
}

/// What a name means in a call.
pub(crate) enum Function<'a> {
    Scalar(&'a ScalarUDF),
    Aggregate,
}

impl Functions {
    pub fn new() -> Self {
        let mut scalars = BTreeMap::new();
        for function in SessionStateDefaults::default_scalar_functions() {
            for alias in function.aliases() {
                scalars.insert(alias.clone(), Arc::clone(&function));
            }
            scalars.insert(function.name().to_owned(), function);
        }
        let mut aggregates = BTreeMap::new();
        let ours = functions::aggregates().into_iter().map(Arc::new);
        for function in SessionStateDefaults::default_aggregate_functions()
            .into_iter()
            .chain(ours)
        {
            for alias in function.aliases() {
                aggregates.insert(alias.clone(), Arc::clone(&function));
            }
            aggregates.insert(function.name().to_owned(), function);
        }
        // As SQL writes it.
        for (alias, name) in [("variance", "var")] {
            if let Some(function) = aggregates.get(name).cloned() {
                aggregates.entry(alias.to_owned()).or_insert(function);
            }
        }
        Self {
            scalars,
            aggregates,
            planners: SessionStateDefaults::default_expr_planners(),
            options: ConfigOptions::default(),
        }
    }

    /// Adds a scalar function.
    pub fn add(&mut self, function: &Arc<ScalarUDF>) {
        self.scalars.insert(function.name().to_owned(), Arc::clone(function));
    }

    pub fn find(&self, name: &str) -> Option<Function<'_>> {
        let name = name.to_ascii_lowercase();
        let scalar = self.scalars.get(&name).map(|function| Function::Scalar(function));
        scalar.or_else(|| self.aggregates.contains_key(&name).then_some(Function::Aggregate))
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.scalars.keys().chain(self.aggregates.keys()).map(String::as_str)
    }

    /// Whether equal arguments give equal results, on every machine and at any time.
    pub fn is_pure(function: &ScalarUDF) -> bool {
        function.signature().volatility == Volatility::Immutable
    }

    /// SELECT → typed logical plan, not optimised: the aggregate keeps its shape.
    pub fn plan(&self, query: ast::Query, table: &str, schema: &Schema) -> Result<LogicalPlan> {
        let provider = Provider {
            functions: self,
            table: Some((table, Arc::new(LogicalTableSource::new(Arc::new(schema.clone()))))),
        };
        let planner = SqlToRel::new_with_options(&provider, parser_options());
        let plan = planner.sql_statement_to_plan(ast::Statement::Query(Box::new(query)))?;
        Analyzer::new().execute_and_check(plan, &self.options, |_, _| {})
    }

    /// An expression over columns → typed logical expression.
    pub fn expression(&self, expr: ast::Expr, schema: &DFSchema) -> Result<Expr> {
        let provider = Provider {
            functions: self,
            table: None,
        };
        let planner = SqlToRel::new_with_options(&provider, parser_options());
        let expr = planner.sql_to_expr(expr, schema, &mut PlannerContext::new())?;
        let schema = Arc::new(schema.clone());
        simplifier(&schema).coerce(expr, &schema)
    }
}

fn parser_options() -> ParserOptions {
    let mut options = ParserOptions::new()
        .with_enable_ident_normalization(false)
        .with_collect_spans(true);
    options.map_string_types_to_utf8view = false;
    options
}

struct Provider<'a> {
    functions: &'a Functions,
    table: Option<(&'a str, Arc<dyn TableSource>)>,
}

impl ContextProvider for Provider<'_> {
    fn get_table_source(&self, name: TableReference) -> Result<Arc<dyn TableSource>> {
        match &self.table {
            Some((table, source)) if *table == name.table() => Ok(Arc::clone(source)),
            _ => plan_err!("unknown source `{}`", name.table()),
        }
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        &self.functions.planners
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        self.functions.scalars.get(name).cloned()
    }

    fn get_higher_order_meta(&self, _name: &str) -> Option<Arc<HigherOrderUDF>> {
        None
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        self.functions.aggregates.get(name).cloned()
    }

    fn get_window_meta(&self, _name: &str) -> Option<Arc<WindowUDF>> {
        None
    }

    fn get_variable_type(&self, _variable_names: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        &self.functions.options
    }

    fn udf_names(&self) -> Vec<String> {
        self.functions.scalars.keys().cloned().collect()
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        Vec::new()
    }

    fn udaf_names(&self) -> Vec<String> {
        self.functions.aggregates.keys().cloned().collect()
    }

    fn udwf_names(&self) -> Vec<String> {
        Vec::new()
    }
}

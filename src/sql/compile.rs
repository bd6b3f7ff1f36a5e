//! The whole text: statements in any order → one plan, or every error.

use std::collections::{BTreeMap, BTreeSet};

use datafusion::sql::sqlparser::tokenizer::Token as Tok;
use engine::spec::{
    Beyond, DetectorSpec, OptionValue, PaneSetSpec, Pipeline, PolicySpec, SinkInput, SinkSpec, SourceSpec, ViewSpec,
};

use crate::{
    DetectorCatalog,
    ast::{self, Statement},
    catalog::Functions,
    detector::{self, Detector, Relations},
    diagnostic::{Diagnostic, Diagnostics, Span, nearest},
    join,
    lookup::{self, Table},
    pane_set::{self, PaneSet},
    parse, policy, select, sink,
    source::{self, Source},
    text::{LineMap, Name, Token, statements, tokenize},
    union,
    view::{self, View},
};

/// Where late rows go when nothing is said.
const LATE: &str = "late";
/// A text larger than this is not a pipeline.
const TEXT_MAX: usize = 1 << 20;

pub(crate) fn compile(name: &str, text: &str, catalog: &dyn DetectorCatalog) -> Result<Pipeline, Diagnostics> {
    let mut compiler = Compiler::new(name, text);
    let pipeline = compiler.pipeline(text, catalog);
    match pipeline {
        Some(pipeline) if compiler.errors.is_empty() => Ok(pipeline),
        _ => Err(Diagnostics::locate(compiler.errors, text)),
    }
}

/// Statements by kind, in the order of the text.
#[derive(Default)]
pub(crate) struct Statements {
    pub sources: Vec<ast::Source>,
    pub rows: Vec<ast::Rows>,
    pub views: Vec<ast::View>,
    pub detectors: Vec<ast::Detector>,
    pub policies: Vec<ast::Policy>,
    pub sinks: Vec<ast::Sink>,
}

/// The statements of a text, for whoever needs no plan.
pub(crate) fn parsed(text: &str, errors: &mut Vec<Diagnostic>) -> Statements {
    let mut compiler = Compiler::new("", text);
    let statements = compiler.statements(text);
    errors.append(&mut compiler.errors);
    statements
}

struct Compiler<'a> {
    name: &'a str,
    known: Known<'a>,
    failed_detectors: BTreeMap<String, policy::Failed>,
    errors: Vec<Diagnostic>,
}

/// What names in a SELECT may mean.
struct Known<'a> {
    lines: LineMap<'a>,
    functions: Functions,
    tables: Vec<Table>,
    /// Sources and views that are declared, but wrongly: what refers to them is not blamed for it, as with detectors.
    failed: Vec<String>,
    /// Columns of those of them of which these are known.
    outputs: BTreeMap<String, Vec<String>>,
}

impl Known<'_> {
    fn context<'b>(&'b self, statements: &'b Statements) -> select::Context<'b> {
        select::Context {
            functions: &self.functions,
            lines: &self.lines,
            failed: &self.failed,
            views: &statements.views,
            tables: &self.tables,
        }
    }
}

impl<'a> Compiler<'a> {
    fn new(name: &'a str, text: &'a str) -> Self {
        Self {
            name,
            known: Known {
                lines: LineMap::new(text),
                functions: Functions::new(),
                tables: Vec::new(),
                failed: Vec::new(),
                outputs: BTreeMap::new(),
            },
            failed_detectors: BTreeMap::new(),
            errors: Vec::new(),
        }
    }

    fn pipeline(&mut self, text: &str, catalog: &dyn DetectorCatalog) -> Option<Pipeline> {
        if text.len() > TEXT_MAX {
            self.errors.push(Diagnostic::new(
                format!("a pipeline of {} bytes; at most {TEXT_MAX} are read", text.len()),
                Span::default(),
            ));
            return None;
        }
        let mut statements = self.statements(text);
        union::take_inline(&mut statements);
        if statements.sources.is_empty() && self.errors.is_empty() {
            self.errors.push(
                Diagnostic::new("the pipeline has no source", Span::default())
                    .help("begin with CREATE SOURCE name WITH (connector='kafka', topic='…', format='otlp_metrics')"),
            );
            return None;
        }
        self.own_topics(&statements, catalog);
        self.tables(&statements, catalog);
        let mut sources = self.sources(&statements);
        self.rows(&statements, &mut sources);
        let views = self.views(&statements, &mut sources);
        let mut sets = Vec::new();
        let placed = pane_set::share(&views, &mut sets);
        let mut detectors = self.detectors(&statements, &sources, &views, &mut sets, catalog);
        let policies = self.policies(&statements, &mut detectors);
        let sinks = self.sinks(&statements, &sources, &views, &detectors);
        if !self.errors.is_empty() {
            return None;
        }
        let plan = physical(&sources, &mut sets, &views, placed);
        let declared = sources;
        let (sources, pane_sets, views) = match plan {
            Ok(plan) => plan,
            Err(error) => {
                self.errors
                    .push(view::planner_error(&error, Span::default(), &self.known.lines));
                return None;
            }
        };
        self.check_tables(&statements, &sources, &pane_sets);
        let sinks = self.of_used(sinks, &statements, &declared, &sources);
        if !self.errors.is_empty() {
            return None;
        }
        Some(Pipeline {
            name: self.name.to_owned(),
            sources,
            pane_sets,
            views,
            detectors: detectors.into_iter().map(Detector::into_spec).collect(),
            policies,
            sinks,
        })
    }

    fn statements(&mut self, text: &str) -> Statements {
        let (mut tokens, unread) = tokenize(text);
        if let Some(error) = unread {
            // What begins before the place ends behind it, and what follows may have been meant as statements.
            let whole = tokens.iter().rposition(|token| token.kind == Tok::SemiColon);
            self.failed(&tokens[whole.map_or(0, |at| at + 1)..]);
            tokens.truncate(whole.unwrap_or(0));
            let rest = text.get(error.span.start + 1..).unwrap_or_default();
            for statement in rest.split(';') {
                self.failed(&tokenize(statement).0);
            }
            self.errors.push(error);
        }
        let mut parsed = Statements::default();
        let mut names: Vec<(&'static str, String)> = Vec::new();
        for tokens in self.parted(&tokens) {
            let Some(statement) = parse::statement(tokens, &mut self.errors) else {
                self.failed(tokens);
                continue;
            };
            let name = statement.name();
            // Views and sources are both what a detector can be on.
            let space = match statement.kind() {
                "source" | "view" | "feature view" => "source or view",
                other => other,
            };
            if names.iter().any(|(kind, other)| *kind == space && *other == name.text) {
                let message = format!("there is already a {space} `{}`", name.text);
                self.errors
                    .push(Diagnostic::new(message, name.span).help("give one of them another name"));
                continue;
            }
            if name.text.is_empty() || name.text.len() > 100 {
                self.errors
                    .push(Diagnostic::new("a name has between 1 and 100 characters", name.span));
                continue;
            }
            names.push((space, name.text.clone()));
            match statement {
                Statement::Source(source) => parsed.sources.push(source),
                Statement::Rows(rows) => parsed.rows.push(rows),
                Statement::View(view) => parsed.views.push(view),
                Statement::Detector(detector) => parsed.detectors.push(detector),
                Statement::Policy(policy) => parsed.policies.push(policy),
                Statement::Sink(sink) => parsed.sinks.push(sink),
            }
        }
        parsed
    }

    /// Statements between semicolons, and between those that are missing.
    fn parted<'t>(&mut self, tokens: &'t [Token]) -> Vec<&'t [Token]> {
        let mut parted = Vec::new();
        for mut rest in statements(tokens) {
            while let Some(at) = (1..rest.len()).find(|at| parse::begins_statement(&rest[*at..])) {
                let here = rest[at].span;
                let message = format!("expected `;`, found `{}`", rest[at].kind);
                let error = Diagnostic::new(message, here);
                self.errors
                    .push(error.help("a statement ends with `;`, also the one before this"));
                parted.push(&rest[..at]);
                rest = &rest[at..];
            }
            parted.push(rest);
        }
        parted
    }

    /// Remembers the name that a statement which does not parse would have declared.
    fn failed(&mut self, tokens: &[Token]) {
        let head = ["SOURCE", "TABLE", "VIEW", "DETECTOR", "STREAM"];
        let create = tokens.iter().position(|token| token.is_word("CREATE"));
        let heads = tokens.iter().enumerate().skip(create.unwrap_or(0)).take(5);
        let mut found = heads.filter(|(_, token)| head.iter().any(|word| token.is_word(word)));
        let Some((at, _)) = found.next() else { return };
        let Some(name) = tokens.get(at + 1).and_then(Token::word) else {
            return;
        };
        if tokens[at].is_word("DETECTOR") {
            self.failed_detectors
                .insert(name.value.clone(), policy::Failed::default());
        } else {
            self.known.failed.push(name.value.clone());
        }
    }

    /// What is left out of a plan is never left out in silence.
    fn explained(&mut self, name: &Name) {
        if self.errors.is_empty() {
            self.errors
                .push(Diagnostic::new(format!("`{}` cannot be planned", name.text), name.span));
        }
    }

    /// No pipeline reads or writes what stages say to each other.
    fn own_topics(&mut self, statements: &Statements, catalog: &dyn DetectorCatalog) {
        let sources = statements.sources.iter().map(|ast| &ast.options);
        let settings = sources.chain(statements.sinks.iter().map(|ast| &ast.options)).flatten();
        let topics = settings.filter(|setting| setting.key.value.eq_ignore_ascii_case("topic"));
        let own = topics.filter_map(|setting| match &setting.value.value {
            OptionValue::Text(name) => Some((catalog.own_topic(name, false)?, setting.value.span)),
            _ => None,
        });
        let late = statements.views.iter().filter_map(|ast| ast.late_topic.as_ref());
        let late = late.filter(|topic| topic.value != LATE);
        let into = statements.policies.iter().filter_map(|ast| ast.into.as_ref());
        let into = into.filter(|topic| topic.value != policy::INTO);
        let prefixed = late
            .chain(into)
            .filter_map(|topic| Some((catalog.own_topic(&topic.value, true)?, topic.span)));
        let errors = own.chain(prefixed).map(|(name, span)| {
            Diagnostic::new(format!("`{name}` is a topic that the fleet keeps for itself"), span)
                .help("use a topic of your own; what a view or a detector says is written by CREATE SINK")
        });
        self.errors.extend(errors);
    }

    /// Tables of files and topics; their columns are functions.
    fn tables(&mut self, statements: &Statements, catalog: &dyn DetectorCatalog) {
        for ast in statements.sources.iter().filter(|ast| lookup::is_table(ast)) {
            match lookup::resolve(ast, catalog, &mut self.errors) {
                Some(table) => {
                    table
                        .functions()
                        .for_each(|function| self.known.functions.add(function));
                    self.known.tables.push(table);
                }
                None => self.known.failed.push(ast.name.text.clone()),
            }
        }
    }

    /// What a table in a topic rules out: being a source as well, and panes that are published when they are full, which a replay of the
    /// rows must find as full.
    fn check_tables(&mut self, statements: &Statements, sources: &[SourceSpec], sets: &[PaneSetSpec]) {
        for set in sets {
            for table in engine::table::tables_of(set) {
                let declared = statements.sources.iter().find(|ast| ast.name.text == table.name);
                let span = declared.map_or_else(Span::default, |ast| ast.name.span);
                if let Some(source) = sources.iter().find(|source| source.topic == table.source.topic) {
                    let message = format!(
                        "topic {} is source `{}` and table `{}`",
                        source.topic, source.name, table.name
                    );
                    self.errors
                        .push(Diagnostic::new(message, span).help("a topic is one of them"));
                }
                if set.state_limit.is_some_and(|limit| limit.beyond == Beyond::Evict) {
                    let message = format!(
                        "table `{}` is in a topic, and ON STATE LIMIT EVICT works on rows alone",
                        table.name
                    );
                    self.errors
                        .push(Diagnostic::new(message, span).help("use REJECT or FAIL, or a table in a file"));
                }
            }
        }
    }

    fn sources(&mut self, statements: &Statements) -> Vec<Source> {
        let declared = statements.sources.iter().filter(|ast| !lookup::is_table(ast));
        declared.map(|ast| source::resolve(ast, &mut self.errors)).collect()
    }

    /// Views of rows, which then count as sources.
    fn rows(&mut self, statements: &Statements, sources: &mut Vec<Source>) {
        for ast in &statements.rows {
            let context = self.known.context(statements);
            let rows = union::resolve(ast, sources, &context, &mut self.errors);
            sources.push(rows);
        }
    }

    /// Those over sources, then those over views.
    fn views(&mut self, statements: &Statements, sources: &mut Vec<Source>) -> Vec<View> {
        let (over_views, over_sources): (Vec<&ast::View>, Vec<&ast::View>) = statements
            .views
            .iter()
            .partition(|ast| join::reads_views(ast, &statements.views));
        let mut views = Vec::new();
        for ast in over_sources {
            let context = self.known.context(statements);
            match view::plan(self.name, ast, sources, &context, &mut self.errors) {
                Ok(view) => views.push(view),
                Err(names) => self.failed_view(ast, names),
            }
        }
        let mut waiting = over_views;
        while !waiting.is_empty() {
            // Each after those that it reads.
            let unread = waiting.iter().map(|view| view.name.text.as_str());
            let ready = waiting
                .iter()
                .position(|ast| join::read_by(ast, unread.clone()).is_empty());
            let ast = waiting.remove(ready.unwrap_or(0));
            let context = self.known.context(statements);
            let planned = match ready {
                Some(_) => join::plan(self.name, ast, &views, sources, &context, &mut self.errors),
                None => {
                    let message = format!("`{}` reads itself, through views or at once", ast.name.text);
                    self.errors.push(
                        Diagnostic::new(message, ast.name.span).help("views over views end at a view of a source"),
                    );
                    None
                }
            };
            match planned {
                Some(view) => views.push(view),
                None => self.failed_view(ast, select::output_names(ast, &self.known.lines)),
            }
        }
        views
    }

    /// `names`: of its columns, where they can be told.
    fn failed_view(&mut self, ast: &ast::View, names: Option<Vec<String>>) {
        self.explained(&ast.name);
        if let Some(names) = names {
            self.known.outputs.insert(ast.name.text.clone(), names);
        }
        self.known.failed.push(ast.name.text.clone());
    }

    fn detectors(
        &mut self,
        statements: &Statements,
        sources: &[Source],
        views: &[View],
        sets: &mut Vec<PaneSet>,
        catalog: &dyn DetectorCatalog,
    ) -> Vec<Detector> {
        let mut detectors = Vec::new();
        for ast in &statements.detectors {
            let relations = Relations {
                sources,
                views,
                failed: &self.known.failed,
                outputs: &self.known.outputs,
            };
            match detector::resolve(ast, &relations, sets, catalog, &mut self.errors) {
                Some(detector) => detectors.push(detector),
                None => {
                    self.explained(&ast.name);
                    let view = views.iter().find(|view| view.name == ast.on.text);
                    let outputs =
                        view.map(|view| view.output.fields().iter().map(|field| field.name().clone()).collect());
                    let columns: Option<Vec<String>> =
                        outputs.or_else(|| self.known.outputs.get(&ast.on.text).cloned());
                    // A key that is misspelt is the one that is meant.
                    let meant = |name: &Name| {
                        let columns = columns.iter().flatten().map(String::as_str);
                        nearest(&name.text, columns).unwrap_or(&name.text).to_owned()
                    };
                    let failed = policy::Failed {
                        keys: ast.key.as_ref().map(|key| key.iter().map(meant).collect()),
                        columns,
                    };
                    self.failed_detectors.insert(ast.name.text.clone(), failed);
                }
            }
        }
        detectors
    }

    fn sinks(
        &mut self,
        statements: &Statements,
        sources: &[Source],
        views: &[View],
        detectors: &[Detector],
    ) -> Vec<SinkSpec> {
        let relations = sink::Relations {
            sources,
            views,
            detectors,
            failed: self.known.failed.iter().chain(self.failed_detectors.keys()).collect(),
        };
        let sinks = statements.sinks.iter();
        sinks
            .filter_map(|ast| sink::resolve(ast, &relations, &mut self.errors))
            .collect()
    }

    /// Sinks of sources by their place among those that are read.
    fn of_used(
        &mut self,
        sinks: Vec<SinkSpec>,
        statements: &Statements,
        declared: &[Source],
        used: &[SourceSpec],
    ) -> Vec<SinkSpec> {
        let mut found = Vec::new();
        for mut sink in sinks {
            if let SinkInput::DeadLetters(source) = sink.input {
                let name = &declared[source].name;
                let Some(index) = used.iter().position(|used| used.name == *name) else {
                    let ast = statements.sinks.iter().find(|ast| ast.name.text == sink.name);
                    let span = ast.map_or_else(Span::default, |ast| ast.from.span);
                    let message = format!("no view reads `{name}`, so it has no dead letters");
                    self.errors
                        .push(Diagnostic::new(message, span).help("remove the sink, or write a view"));
                    continue;
                };
                sink.input = SinkInput::DeadLetters(index);
            }
            found.push(sink);
        }
        found
    }

    fn policies(&mut self, statements: &Statements, detectors: &mut [Detector]) -> Vec<PolicySpec> {
        let mut policies = Vec::new();
        for ast in &statements.policies {
            let failed = &self.failed_detectors;
            match policy::resolve(
                ast,
                detectors,
                failed,
                &statements.views,
                &self.known.functions,
                &self.known.lines,
                &mut self.errors,
            ) {
                Some(policy) => policies.push(policy),
                None => self.explained(&ast.name),
            }
        }
        policies
    }
}

impl Detector {
    fn into_spec(self) -> DetectorSpec {
        let mut spec = self.spec;
        let known: BTreeSet<&String> = spec.features.iter().map(|(name, _)| name).collect();
        let columns = self.used.into_iter().filter(|(name, _)| !known.contains(name));
        spec.columns = columns.collect();
        spec
    }
}

type Physical = (Vec<SourceSpec>, Vec<PaneSetSpec>, Vec<ViewSpec>);

/// Physical plans over what sources deliver. A source that nothing reads is left out.
fn physical(
    sources: &[Source],
    sets: &mut Vec<PaneSet>,
    views: &[View],
    placed: Vec<(usize, Vec<usize>)>,
) -> datafusion::common::Result<Physical> {
    let places = union::expand(sets, sources)?;
    let sets: &[PaneSet] = sets;
    let used: Vec<usize> = (0..sources.len())
        .filter(|index| sets.iter().any(|set| set.source == *index))
        .collect();
    let specs: Vec<SourceSpec> = used
        .iter()
        .map(|index| sources[*index].spec(&pane_set::used_columns(sets, *index)))
        .collect();
    let mut pane_sets = Vec::with_capacity(sets.len());
    for set in sets {
        let position = used.iter().position(|index| *index == set.source);
        let position = position.expect("a source with a pane set is in use");
        pane_sets.push(pane_set::physical(
            set,
            position,
            &sources[set.source],
            &specs[position],
        )?);
    }
    let mut physical_views = Vec::with_capacity(views.len());
    for (index, (view, (set, aggregates))) in views.iter().zip(placed).enumerate() {
        physical_views.push(pane_set::physical_view(index, view, places[set].clone(), aggregates)?);
    }
    Ok((specs, pane_sets, physical_views))
}

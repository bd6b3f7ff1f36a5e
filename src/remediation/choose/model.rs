//! A trained model: which action fits an incident like this one, how surely, and why.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Encoder, Forest, Tree, Value, forest::Growth};

/// One past incident with what was right for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    pub incident: String,
    /// The action that was right.
    pub label: String,
    pub features: BTreeMap<String, Value>,
}

/// How a model is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainOptions {
    pub trees: u16,
    pub depth_max: u16,
    /// Depth of the one tree that explains.
    pub explain_depth_max: u16,
    /// Abstain when the best action leads the second by fewer votes than this share.
    pub margin: f64,
    pub seed: u64,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            trees: 100,
            depth_max: 16,
            explain_depth_max: 6,
            margin: 0.1,
            seed: 1,
        }
    }
}

/// Why nothing could be learned.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error("there are no incidents to learn from")]
    Empty,
    #[error("incident {0:?} has no label")]
    Unlabelled(String),
    #[error("every incident has the label {0:?}: there is nothing to choose between")]
    OneLabel(String),
    #[error("no column tells incidents apart")]
    NoFeatures,
    #[error("the trees could not be grown: {0}")]
    Growth(String),
}

/// A model, complete in itself: it reads features, votes, and explains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Version of this format.
    format: u32,
    actions: Vec<String>,
    /// Past incidents by action.
    counts: Vec<u64>,
    margin: f64,
    /// Share of past incidents that trees which had not seen them voted for rightly.
    accuracy: f64,
    encoder: Encoder,
    forest: Forest,
    tree: Tree,
}

/// What a model says of one incident.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranking {
    /// Every action the model knows, most probable first; the probabilities sum to 1.
    pub probabilities: Vec<(String, f64)>,
    /// The lead is too small to choose on.
    pub abstained: bool,
    /// The conditions that the explaining tree found to hold, and the action it comes to.
    pub path: Vec<String>,
    pub path_action: Option<String>,
}

impl Ranking {
    pub fn best(&self) -> Option<&str> {
        self.probabilities.first().map(|(action, _)| action.as_str())
    }

    pub fn probability(&self, action: &str) -> Option<f64> {
        self.probabilities
            .iter()
            .find(|(name, _)| name == action)
            .map(|(_, probability)| *probability)
    }
}

/// Learns from past incidents. The same table in any order of rows and the same options give the same model.
pub fn train(examples: &[Example], options: &TrainOptions) -> Result<Model, TrainError> {
    // An incident may have several rows, one per observation: what they say settles their order.
    let written = |example: &Example| serde_json::to_string(&example.features).unwrap_or_default();
    let mut examples: Vec<&Example> = examples.iter().collect();
    examples.sort_by_cached_key(|example| (&example.incident, &example.label, written(example)));
    if let Some(unlabelled) = examples.iter().find(|example| example.label.trim().is_empty()) {
        return Err(TrainError::Unlabelled(unlabelled.incident.clone()));
    }
    let actions: BTreeSet<&str> = examples.iter().map(|example| example.label.as_str()).collect();
    let actions: Vec<String> = actions.into_iter().map(str::to_owned).collect();
    match actions.as_slice() {
        [] => return Err(TrainError::Empty),
        [only] => return Err(TrainError::OneLabel(only.clone())),
        _ => {}
    }
    let class = |label: &String| actions.binary_search(label).expect("every label is an action");
    let classes: Vec<usize> = examples.iter().map(|example| class(&example.label)).collect();
    let rows: Vec<&BTreeMap<String, Value>> = examples.iter().map(|example| &example.features).collect();
    let encoder = Encoder::fit(&rows, &classes);
    if encoder.width() == 0 {
        return Err(TrainError::NoFeatures);
    }
    let encoded: Vec<Vec<f64>> = rows.iter().map(|row| encoder.encode(row)).collect();
    let labels: Vec<u32> = classes.iter().map(|class| *class as u32).collect();
    let growth = Growth {
        trees: options.trees.max(1),
        depth_max: options.depth_max.max(1),
        seed: options.seed,
    };
    let (forest, accuracy) = Forest::grow(&encoded, &labels, growth).map_err(TrainError::Growth)?;
    let tree = Tree::grow(&encoded, &labels, options.explain_depth_max.max(1)).map_err(TrainError::Growth)?;
    let mut counts = vec![0; actions.len()];
    classes.iter().for_each(|class| counts[*class] += 1);
    Ok(Model {
        format: 1,
        actions,
        counts,
        margin: options.margin,
        accuracy,
        encoder,
        forest,
        tree,
    })
}

impl Model {
    /// Says what fits an incident with these features.
    pub fn choose(&self, features: &BTreeMap<String, Value>) -> Ranking {
        let row = self.encoder.encode(features);
        let votes = self.forest.votes(&row, self.actions.len());
        // Half a vote more for every action: none is impossible, and a small forest is not too sure.
        let (trees, count) = (self.forest.len() as f64, self.actions.len() as f64);
        let probability = |vote: &f64| (vote * trees + 0.5) / (trees + 0.5 * count);
        let mut probabilities: Vec<(String, f64)> = self
            .actions
            .iter()
            .cloned()
            .zip(votes.iter().map(probability))
            .collect();
        probabilities.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let lead = probabilities[0].1 - probabilities.get(1).map_or(0.0, |second| second.1);
        let (class, path) = self.tree.path(&row);
        let condition =
            |(feature, at_most, threshold): (usize, bool, f64)| self.encoder.condition(feature, at_most, threshold);
        Ranking {
            probabilities,
            abstained: lead < self.margin,
            path: path.into_iter().map(condition).collect(),
            path_action: self.actions.get(class).cloned(),
        }
    }

    /// Every action the model was trained on.
    pub fn actions(&self) -> &[String] {
        &self.actions
    }

    /// Share of past incidents that trees which had not seen them voted for rightly.
    pub fn accuracy(&self) -> f64 {
        self.accuracy
    }

    /// Past incidents it was trained on.
    pub fn examples(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Share of the most frequent action among them: what is right without looking.
    pub fn majority(&self) -> f64 {
        let most = self.counts.iter().max().copied().unwrap_or(0);
        most as f64 / self.examples().max(1) as f64
    }

    /// Columns the model reads that have a value in none of these rows.
    pub fn columns_missing<'a>(&self, rows: impl Iterator<Item = &'a BTreeMap<String, Value>>) -> Vec<&str> {
        let given: BTreeSet<&str> = rows.flat_map(BTreeMap::keys).map(String::as_str).collect();
        self.encoder.columns().filter(|name| !given.contains(name)).collect()
    }

    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a model has string keys and finite numbers")
    }

    /// Reads a model; one of another format is refused.
    pub fn from_json(bytes: &[u8]) -> Result<Self, String> {
        let model: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        match (model.format, model.actions.len()) {
            (1, 2..) => Ok(model),
            (1, _) => Err("the model knows fewer than two actions".into()),
            (format, _) => Err(format!("the model has format {format}, this program reads 1")),
        }
    }

    /// A name that changes whenever anything in the model does.
    pub fn version(&self) -> String {
        let text = String::from_utf8(self.to_json()).expect("JSON is UTF-8");
        protocol::id::derived("model", &[&text]).to_string()
    }
}

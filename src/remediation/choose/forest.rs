//! Trees grown by smartcore, kept in a form of our own: small, versioned with the model, and open to explanation.

use serde::{Deserialize, Serialize};
use smartcore::{
    ensemble::random_forest_classifier::{RandomForestClassifier, RandomForestClassifierParameters},
    linalg::basic::matrix::DenseMatrix,
    tree::decision_tree_classifier::{DecisionTreeClassifier, DecisionTreeClassifierParameters},
};

/// A node: `feature <= threshold` leads to `yes`, else to `no`; a leaf has neither.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Node {
    /// feature, threshold, yes, no
    Split(u32, f64, u32, u32),
    Leaf(u32),
}

/// One decision tree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tree {
    nodes: Vec<Node>,
}

/// Many trees, each grown from a sample of the rows; they vote.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Forest {
    trees: Vec<Tree>,
}

/// What smartcore's trees look like when they are written down.
#[derive(Deserialize)]
struct Written {
    nodes: Vec<WrittenNode>,
    classes: Vec<u32>,
}

#[derive(Deserialize)]
struct WrittenNode {
    output: usize,
    split_feature: usize,
    split_value: Option<f64>,
    true_child: Option<usize>,
    false_child: Option<usize>,
}

#[derive(Deserialize)]
struct WrittenForest {
    trees: Vec<Written>,
}

type Matrix = DenseMatrix<f64>;

/// How trees are grown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Growth {
    pub trees: u16,
    pub depth_max: u16,
    pub seed: u64,
}

fn matrix(rows: &[Vec<f64>]) -> Result<Matrix, String> {
    DenseMatrix::from_2d_vec(&rows.to_vec()).map_err(|error| error.to_string())
}

impl Forest {
    /// Grows a forest; with it the share of rows that trees which did not see them vote for rightly.
    pub(crate) fn grow(rows: &[Vec<f64>], classes: &[u32], growth: Growth) -> Result<(Self, f64), String> {
        let x = matrix(rows)?;
        let y = classes.to_vec();
        let width = rows.first().map_or(0, Vec::len);
        // A third of the features tried at each split suits many sparse columns better than their square root.
        let tried = (width as f64).sqrt().ceil().max(width as f64 / 3.0) as usize;
        let parameters = RandomForestClassifierParameters::default()
            .with_n_trees(growth.trees)
            .with_max_depth(growth.depth_max)
            .with_m(tried.clamp(1, width.max(1)))
            .with_keep_samples(true)
            .with_seed(growth.seed);
        let forest = RandomForestClassifier::fit(&x, &y, parameters).map_err(|error| error.to_string())?;
        let guessed: Vec<u32> = forest.predict_oob(&x).map_err(|error| error.to_string())?;
        let right = guessed.iter().zip(&y).filter(|(guess, class)| guess == class).count();
        let written = serde_json::to_value(&forest).map_err(|error| error.to_string())?;
        let written: WrittenForest = serde_json::from_value(written).map_err(|error| error.to_string())?;
        let trees = written.trees.into_iter().map(Tree::from_written).collect::<Option<_>>();
        let trees = trees.ok_or("a grown tree is not whole")?;
        Ok((Self { trees }, right as f64 / y.len().max(1) as f64))
    }

    /// Trees that vote.
    pub fn len(&self) -> usize {
        self.trees.len()
    }

    pub fn is_empty(&self) -> bool {
        self.trees.is_empty()
    }

    /// Shares of the votes by class.
    pub fn votes(&self, row: &[f64], classes: usize) -> Vec<f64> {
        let mut votes = vec![0.0; classes];
        for tree in &self.trees {
            if let Some(vote) = votes.get_mut(tree.class(row)) {
                *vote += 1.0 / self.trees.len() as f64;
            }
        }
        votes
    }
}

impl Tree {
    /// Grows one tree of all rows.
    pub(crate) fn grow(rows: &[Vec<f64>], classes: &[u32], depth_max: u16) -> Result<Self, String> {
        let parameters = DecisionTreeClassifierParameters {
            max_depth: Some(depth_max),
            min_samples_leaf: 2,
            seed: Some(0),
            ..DecisionTreeClassifierParameters::default()
        };
        let tree = DecisionTreeClassifier::fit(&matrix(rows)?, &classes.to_vec(), parameters);
        let tree = tree.map_err(|error| error.to_string())?;
        let written = serde_json::to_value(&tree).map_err(|error| error.to_string())?;
        let written: Written = serde_json::from_value(written).map_err(|error| error.to_string())?;
        Self::from_written(written).ok_or_else(|| "a grown tree is not whole".to_owned())
    }

    fn from_written(written: Written) -> Option<Self> {
        let count = written.nodes.len();
        let node = |node: WrittenNode| match (node.true_child, node.false_child) {
            (Some(yes), Some(no)) if yes < count && no < count => Some(Node::Split(
                u32::try_from(node.split_feature).ok()?,
                node.split_value?,
                u32::try_from(yes).ok()?,
                u32::try_from(no).ok()?,
            )),
            _ => Some(Node::Leaf(*written.classes.get(node.output)?)),
        };
        let nodes = written.nodes.into_iter().map(node).collect::<Option<Vec<_>>>()?;
        Some(Self { nodes })
    }

    /// Class of a row.
    pub fn class(&self, row: &[f64]) -> usize {
        self.walk(row, |_, _, _| {})
    }

    /// Class of a row, with every condition on the way: feature, whether it is at most the threshold, threshold.
    pub fn path(&self, row: &[f64]) -> (usize, Vec<(usize, bool, f64)>) {
        let mut path = Vec::new();
        let class = self.walk(row, |feature, at_most, threshold| {
            path.push((feature, at_most, threshold))
        });
        (class, path)
    }

    fn walk(&self, row: &[f64], mut step: impl FnMut(usize, bool, f64)) -> usize {
        let mut at = 0;
        // A tree read from a file may lead in a circle: no path is longer than there are nodes.
        for _ in 0..=self.nodes.len() {
            match self.nodes.get(at) {
                Some(Node::Split(feature, threshold, yes, no)) => {
                    let at_most = row.get(*feature as usize).is_some_and(|value| value <= threshold);
                    step(*feature as usize, at_most, *threshold);
                    at = if at_most { *yes } else { *no } as usize;
                }
                Some(Node::Leaf(class)) => return *class as usize,
                None => break,
            }
        }
        usize::MAX
    }
}

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn options() -> TrainOptions {
    TrainOptions {
        trees: 20,
        ..TrainOptions::default()
    }
}

fn features(pairs: &[(&str, &str)]) -> BTreeMap<String, Value> {
    let parse = |(name, text): &(&str, &str)| Some(((*name).to_owned(), Value::parse(text)?));
    pairs.iter().filter_map(parse).collect()
}

/// Leaks grow memory, crashes fall silent, overload has many requests: with noise, gaps and an id that tells nothing.
fn incidents(count: usize) -> Vec<Example> {
    let words = [
        "memory up; cart usage",
        "heartbeat gone; pod missing",
        "requests up; queue full",
    ];
    (0..count)
        .map(|at| {
            let kind = at % 3;
            let noise = (at * 7919 % 100) as f64 / 100.0;
            let memory = if kind == 0 { 800.0 } else { 200.0 } + 100.0 * noise;
            let memory = if at % 11 == 0 {
                String::new()
            } else {
                memory.to_string()
            };
            Example {
                incident: format!("i{at:05}"),
                label: ["restart", "failover", "scale_up"][kind].into(),
                features: features(&[
                    ("memory_mib", &memory),
                    (
                        "rps",
                        &(if kind == 2 { 900.0 } else { 100.0 } * (0.8 + noise)).to_string(),
                    ),
                    ("events", &format!("{} node{} {}", words[kind], at % 5, at)),
                    ("zone", ["a", "b"][at % 2]),
                    ("id", &format!("{:x}", at * 7919)),
                ]),
            }
        })
        .collect()
}

#[test]
fn a_model_learns_what_tells_incidents_apart() {
    let model = train(&incidents(150), &options()).unwrap();
    assert!(model.accuracy() > 0.95, "{}", model.accuracy());
    let mut right = 0;
    for example in &incidents(300)[150..] {
        let ranking = model.choose(&example.features);
        right += usize::from(ranking.best() == Some(example.label.as_str()));
        let sum: f64 = ranking.probabilities.iter().map(|(_, p)| p).sum();
        assert!((sum - 1.0).abs() < 1e-9);
    }
    assert!(right >= 145, "{right} of 150");
}

#[test]
fn a_choice_is_explained_in_the_columns_own_words() {
    let model = train(&incidents(150), &options()).unwrap();
    let ranking = model.choose(&incidents(151)[150].features);
    assert!(!ranking.path.is_empty());
    let known = ["memory_mib", "rps", "events", "zone", "id"];
    for condition in &ranking.path {
        assert!(known.iter().any(|name| condition.starts_with(name)), "{condition}");
    }
    assert_eq!(ranking.path_action.as_deref(), ranking.best());
}

#[test]
fn the_same_table_gives_the_same_model_whatever_its_order() {
    let mut examples = incidents(60);
    let model = train(&examples, &options()).unwrap();
    examples.reverse();
    let again = train(&examples, &options()).unwrap();
    assert_eq!(model.to_json(), again.to_json());
    assert_eq!(model.version(), again.version());
    let read = Model::from_json(&model.to_json()).unwrap();
    assert_eq!(read, model);
}

#[test]
fn what_cannot_be_learned_is_said() {
    let error = |examples: &[Example]| train(examples, &options()).unwrap_err().to_string();
    assert_eq!(error(&[]), "there are no incidents to learn from");
    let mut examples = incidents(6);
    examples[3].label = " ".into();
    assert_eq!(error(&examples), "incident \"i00003\" has no label");
    examples.iter_mut().for_each(|example| example.label = "restart".into());
    assert_eq!(
        error(&examples),
        "every incident has the label \"restart\": there is nothing to choose between"
    );
    let mut examples = incidents(6);
    examples.iter_mut().for_each(|example| example.features.clear());
    assert_eq!(error(&examples), "no column tells incidents apart");
}

/// What is said of the instance at fault is learned for every instance, not for one name.
#[test]
fn texts_that_name_another_column_hold_for_all_its_values() {
    let example = |at: usize| {
        let (own, other) = (format!("pod-{at}"), format!("pod-{}", at + 1000));
        let leak = at.is_multiple_of(2);
        // The same words in both; only who they are about differs.
        let about = if leak { [&own, &other] } else { [&other, &own] };
        Example {
            incident: format!("i{at:03}"),
            label: if leak { "restart" } else { "scale_up" }.into(),
            features: features(&[
                ("instance", &own),
                ("events", &format!("{} memory up; {} requests up", about[0], about[1])),
            ]),
        }
    };
    let examples: Vec<Example> = (0..60).map(example).collect();
    let model = train(&examples, &options()).unwrap();
    let right = (100..140)
        .map(example)
        .filter(|example| model.choose(&example.features).best() == Some(&example.label));
    assert_eq!(right.count(), 40);
}

#[test]
fn a_model_abstains_where_it_cannot_tell() {
    let mut examples = incidents(120);
    // Labels that nothing explains.
    for (at, example) in examples.iter_mut().enumerate() {
        example.label = ["restart", "scale_up"][(at * 7919 / 13) % 2].into();
    }
    let model = train(
        &examples,
        &TrainOptions {
            margin: 0.5,
            ..options()
        },
    )
    .unwrap();
    let abstained = incidents(240)[120..]
        .iter()
        .filter(|example| model.choose(&example.features).abstained)
        .count();
    assert!(abstained > 40, "{abstained} of 120");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever an incident's features are, a model answers.
    #[test]
    fn no_features_panic(pairs in prop::collection::btree_map("memory_mib|rps|events|zone|[a-z]{3}", ".{0,12}|-?[0-9]{1,5}", 0..6)) {
        static MODEL: std::sync::LazyLock<Model> =
            std::sync::LazyLock::new(|| train(&incidents(60), &options()).unwrap());
        let features = pairs.iter().filter_map(|(name, text)| Some((name.clone(), Value::parse(text)?))).collect();
        let ranking = MODEL.choose(&features);
        prop_assert_eq!(ranking.probabilities.len(), 3);
    }

    /// Bytes that are no model are refused, not believed.
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Model::from_json(&bytes).is_err());
    }
}

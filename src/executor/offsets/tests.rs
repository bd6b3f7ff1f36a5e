use proptest::prelude::*;

use super::*;

fn partition() -> TopicPartition {
    TopicPartition::new("actions", 0)
}

#[test]
fn an_earlier_life_finishes_into_nothing() {
    let mut offsets = Offsets::default();
    offsets.assigned(&[(partition(), 5)]);
    let old = offsets.epoch();
    offsets.begun(&partition(), 5);
    offsets.assigned(&[(partition(), 5)]);
    offsets.begun(&partition(), 5);
    offsets.finished(old, &partition(), 5);
    assert_eq!(offsets.committable(), vec![(partition(), 5)]);
    offsets.finished(offsets.epoch(), &partition(), 5);
    assert_eq!(offsets.committable(), vec![(partition(), 6)]);
    offsets.committed(&[(partition(), 6)]);
    assert_eq!(offsets.committable(), vec![]);
    offsets.revoked();
    offsets.begun(&partition(), 6);
    assert_eq!(offsets.committable(), vec![]);
}

proptest! {
    #[test]
    fn never_commits_past_an_unfinished_record(order in proptest::collection::vec(0i64..20, 0..40), gap in 1i64..4) {
        let mut offsets = Offsets::default();
        offsets.assigned(&[(partition(), 0)]);
        for index in 0..20 {
            offsets.begun(&partition(), index * gap);
        }
        let mut finished = BTreeSet::new();
        for index in order {
            offsets.finished(offsets.epoch(), &partition(), index * gap);
            finished.insert(index);
            let expected = (0..20).find(|index| !finished.contains(index)).map_or(19 * gap + 1, |index| index * gap);
            for (_, committed) in offsets.committable() {
                prop_assert_eq!(committed, expected);
            }
            let committable = offsets.committable();
            offsets.committed(&committable);
        }
    }
}

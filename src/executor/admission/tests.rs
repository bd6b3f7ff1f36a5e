use protocol::message::Control;

use super::*;
use crate::command::tests::{NOW_MS, action, command};

const LIMITS: Limits = Limits {
    skew_margin_ms: 1_000,
    age_ms_max: 60_000,
};

fn code(command: &Command, control: &ControlView, highest: Option<u64>, now_ms: i64) -> Option<u16> {
    admit(command, control, highest, LIMITS, now_ms)
        .err()
        .map(|refusal| refusal.code)
}

#[test]
fn the_first_reason_in_order_is_given() {
    let engaged = Control::KillSwitch {
        engaged: true,
        by: "ops".into(),
        reason: String::new(),
    };
    let mut control = ControlView::default();
    control.apply(b"kill_switch", Some(&serde_json::to_vec(&engaged).unwrap()));
    let command = command(action("cart", 1), 5);
    let late = NOW_MS + 31_000;
    assert_eq!(code(&command, &control, Some(6), late), Some(423));
    assert_eq!(code(&command, &ControlView::default(), Some(6), late), Some(412));
    assert_eq!(code(&command, &ControlView::default(), Some(5), late), Some(410));
    assert_eq!(code(&command, &ControlView::default(), Some(5), NOW_MS), None);
}

#[test]
fn nothing_starts_within_the_margin_of_its_expiry() {
    let command = command(action("cart", 1), 5);
    let none = ControlView::default();
    assert_eq!(code(&command, &none, None, NOW_MS + 29_000), None);
    assert_eq!(code(&command, &none, None, NOW_MS + 29_001), Some(410));
    assert_eq!(code(&command, &none, None, i64::MAX), Some(410));
}

#[test]
fn an_old_command_is_expired_whatever_it_says() {
    let mut command = command(action("cart", 1), 5);
    command.event.expiry_time_ms = None;
    command.action.timing.start_deadline = i64::MAX;
    let none = ControlView::default();
    assert_eq!(code(&command, &none, None, NOW_MS + 60_000), None);
    assert_eq!(code(&command, &none, None, NOW_MS + 60_001), Some(410));
    command.appended_at_ms = None;
    assert_eq!(code(&command, &none, None, NOW_MS + 60_001), None);
}

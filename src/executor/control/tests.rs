use super::*;
use crate::command::tests::{NOW_MS, action, command};

fn view(controls: &[Control]) -> ControlView {
    let mut view = ControlView::default();
    for control in controls {
        view.apply(control.scope().as_bytes(), Some(&serde_json::to_vec(control).unwrap()));
    }
    view
}

fn refusal(view: &ControlView) -> Option<String> {
    view.refusal(&command(action("cart", 1), 1), NOW_MS)
}

fn kill(engaged: bool) -> Control {
    Control::KillSwitch {
        engaged,
        by: "ops".into(),
        reason: "deploy".into(),
    }
}

fn mode(service: &str, action: &str, mode: Mode) -> Control {
    Control::Mode {
        service: service.into(),
        action: action.into(),
        mode,
        until: None,
        by: "ops".into(),
        reason: String::new(),
    }
}

fn maintenance(service: &str, from: i64, to: i64) -> Control {
    Control::Maintenance {
        service: service.into(),
        from,
        to,
        by: "ops".into(),
        reason: String::new(),
    }
}

#[test]
fn the_kill_switch_stops_everything_until_released_or_withdrawn() {
    let mut view = view(&[kill(true)]);
    assert!(refusal(&view).unwrap().contains("engaged by ops: deploy"));
    view.apply(b"kill_switch", Some(&serde_json::to_vec(&kill(false)).unwrap()));
    assert_eq!(refusal(&view), None);
    view.apply(b"kill_switch", Some(&serde_json::to_vec(&kill(true)).unwrap()));
    view.apply(b"kill_switch", None);
    assert_eq!(refusal(&view), None);
}

#[test]
fn protection_and_maintenance_are_of_their_service_and_time() {
    let protected = |service: &str| Control::Protected {
        service: service.into(),
        by: "ops".into(),
        reason: String::new(),
    };
    assert!(refusal(&view(&[protected("cart")])).is_some());
    assert_eq!(refusal(&view(&[protected("other")])), None);
    assert!(refusal(&view(&[maintenance("*", NOW_MS, NOW_MS + 1)])).is_some());
    assert!(refusal(&view(&[maintenance("cart", NOW_MS - 1, NOW_MS)])).is_none());
    assert!(refusal(&view(&[maintenance("other", 0, NOW_MS + 1)])).is_none());
}

#[test]
fn the_most_specific_mode_counts() {
    assert_eq!(refusal(&view(&[mode("*", "*", Mode::Auto)])), None);
    assert!(refusal(&view(&[mode("*", "*", Mode::Shadow)])).is_some());
    assert_eq!(
        refusal(&view(&[mode("*", "*", Mode::Off), mode("cart", "*", Mode::Approve)])),
        None
    );
    assert!(
        refusal(&view(&[
            mode("cart", "*", Mode::Auto),
            mode("cart", "restart", Mode::Off)
        ]))
        .is_some()
    );
}

#[test]
fn what_cannot_be_read_is_taken_for_the_strictest() {
    for scope in ["kill_switch", "mode/cart/restart", "protected/cart", "maintenance/*"] {
        let mut view = ControlView::default();
        view.apply(scope.as_bytes(), Some(b"{\"control\":"));
        assert!(refusal(&view).unwrap().contains(scope), "{scope}");
        view.apply(scope.as_bytes(), None);
        assert_eq!(refusal(&view), None);
    }
    let mut view = ControlView::default();
    view.apply(b"pipelines/shop", Some(b"something of a later version"));
    assert_eq!(refusal(&view), None);
}

#[test]
fn a_mode_for_a_time_ends_by_itself() {
    let off_until = |until_ms: i64| {
        let mut off = mode("cart", "*", Mode::Off);
        if let Control::Mode { until, .. } = &mut off {
            *until = Some(until_ms);
        }
        view(&[off, mode("*", "*", Mode::Auto)])
    };
    assert!(refusal(&off_until(NOW_MS + 1)).is_some());
    assert_eq!(refusal(&off_until(NOW_MS)), None);
}

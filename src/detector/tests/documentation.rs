//! `docs/detection.md` names every detector, and every parameter as the catalog has it.

use std::fmt::Write;

fn parameters() -> String {
    let mut table = String::from("| detector | parameter | default | value | meaning |\n|---|---|---|---|---|\n");
    for name in detector::names() {
        for parameter in detector::parameters(name).expect("a known name") {
            let default = match parameter.default {
                "" => "–",
                default => default,
            };
            writeln!(
                table,
                "| `{name}` | `{}` | {default} | {} | {} |",
                parameter.name, parameter.expected, parameter.help
            )
            .expect("a string takes all");
        }
    }
    table
}

#[test]
fn every_parameter_is_documented() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/detection.md");
    let text = std::fs::read_to_string(path).expect("the page on detection");
    for name in detector::names() {
        assert!(text.contains(&format!("\n| `{name}` | ")), "{name} is not listed");
    }
    let table = parameters();
    assert!(text.contains(&table), "docs/detection.md should contain:\n{table}");
}

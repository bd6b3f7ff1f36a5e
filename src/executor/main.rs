use std::process::ExitCode;

use executor::adapter::process::launcher;

fn main() -> ExitCode {
    if std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == launcher::ARGUMENT)
    {
        let _ = launcher::run();
        return ExitCode::from(127);
    }
    ExitCode::from(2)
}

//! Checks of a rollout, one line each.

use std::fmt::Write as _;

use tidegate_proto::control::v1 as api;

use crate::output::{Output, Tone, printable};
use crate::time;

/// What the checks came to so far, and how far those of the present moment are.
pub fn checks(output: Output, deployment: &api::Deployment) -> String {
    let now = time::now_ms();
    let mut text = String::new();
    for check in &deployment.checks {
        let tone = match check.state.as_str() {
            "success" => Tone::Good,
            "failure" => Tone::Bad,
            _ => Tone::Busy,
        };
        let state = output.paint(tone, &printable(&check.state));
        let line = printable(&time::told(&check.line, now));
        writeln!(text, "{} {state}: {line}", printable(&check.moment)).ok();
    }
    if text.is_empty() {
        text
    } else {
        format!("\n{text}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    #[test]
    fn each_check_has_its_line() {
        let output = Output::plain(Format::Table);
        let check = |state: &str, line: &str| api::CheckStatus {
            moment: "step 1".to_owned(),
            state: state.to_owned(),
            line: line.to_owned(),
            ..api::CheckStatus::default()
        };
        let mut deployment = api::Deployment::default();
        assert_eq!(checks(output, &deployment), "");
        deployment.checks = vec![
            check("success", "check smoke succeeded"),
            check("running", "check errors: 1 of 3 successes"),
        ];
        assert_eq!(
            checks(output, &deployment),
            "\nstep 1 success: check smoke succeeded\nstep 1 running: check errors: 1 of 3 successes\n"
        );
    }
}

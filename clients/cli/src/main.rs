//! The program `tidegate`: everything that people do with a cluster, from a shell.
//!
//! A thin client: it checks what can be checked without the cluster, asks one of the coordinators
//! and shows the answer. It decides nothing about deployments.

#![allow(
    clippy::print_stdout,
    reason = "printing is what a command line is for; output.rs does it"
)]

mod commands;
mod connect;
mod context;
mod dev;
mod entropy;
mod errors;
mod follow;
mod manifest;
mod names;
mod output;
mod pack;
mod pages;
mod render;
mod session;
mod set;
mod time;
mod tls;
mod upload;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser};
use tidegate_shared::error::Reason;

use errors::Failure;
use output::ColorChoice;
use session::{GlobalArgs, Session};

/// Publish releases a little at a time, and take them back when they are worse.
#[derive(Debug, Parser)]
#[command(
    name = "tidegate",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 120,
    infer_subcommands = false,
    after_help = "First steps:\n  tidegate dev --demo                    see it work on this machine, in under a minute\n  tidegate dev                           a cluster on this machine to try things on\n  tidegate login --server HOST:7443 --token TOKEN\n  tidegate scope get web-prod            everything about a scope on one screen\n  tidegate deploy web 1.4.0 --scope web-prod --wait\n\nErrors end with a stable code, TG-####; docs/errors explains each."
)]
struct Arguments {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: commands::Command,
}

/// The commands themselves, for completion and manual pages.
fn command() -> clap::Command {
    Arguments::command()
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return of_clap(&error),
    };
    let choice = arguments.global.color;
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            let failure = Failure::new(
                Reason::Internal,
                format!("the program's threads cannot be started: {error}"),
            );
            return tell(&failure, choice);
        }
    };
    let session = Session::new(arguments.global);
    let outcome = runtime.block_on(arguments.command.run(&session));
    runtime.shutdown_background();
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(failure) => tell(&failure, choice),
    }
}

/// Help and version as they are; everything else as one of our failures.
fn of_clap(error: &clap::Error) -> ExitCode {
    match errors::of_clap(error) {
        Some(failure) => tell(&failure, ColorChoice::Auto),
        None if error.kind() == clap::error::ErrorKind::MissingSubcommand => {
            // Clap shows the help only when nothing at all was given, not even by environment.
            let help = help_of(std::env::args().skip(1));
            std::io::stderr().lock().write_all(help.as_bytes()).ok();
            ExitCode::from(errors::EXIT_USAGE)
        }
        None => {
            // Whoever closed the output does not want the rest.
            error.print().ok();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(errors::EXIT_USAGE))
        }
    }
}

/// The help of the command group that the words lead to.
fn help_of(words: impl Iterator<Item = String>) -> String {
    let mut here = command();
    here.build();
    for word in words {
        if let Some(next) = here.find_subcommand(&word).cloned() {
            here = next;
        }
    }
    here.render_help().to_string()
}

fn tell(failure: &Failure, choice: ColorChoice) -> ExitCode {
    if !failure.is_quiet() {
        let text = failure.render(output::color_on_stderr(choice));
        // Nobody is left to tell it to.
        std::io::stderr().lock().write_all(text.as_bytes()).ok();
    }
    ExitCode::from(failure.exit_status())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(arguments: &[&str]) -> String {
        let words = std::iter::once("tidegate").chain(arguments.iter().copied());
        let error = Arguments::try_parse_from(words).unwrap_err();
        errors::of_clap(&error).unwrap().render(false)
    }

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn wrong_words_get_one_line_a_hint_and_a_code() {
        assert_eq!(
            failure(&["deplyo", "web", "1"]),
            "error: unrecognized subcommand 'deplyo'\nhint: did you mean 'deploy'? see `tidegate --help`\ncode: TG-1003\n"
        );
        assert_eq!(
            failure(&["deploy", "web", "1", "--scop", "a"]),
            "error: unexpected argument '--scop' found\nhint: did you mean '--scope'? see `tidegate deploy --help`\ncode: TG-1003\n"
        );
        let text = failure(&["deploy", "web", "1"]);
        assert!(
            text.starts_with(
                "error: the following required arguments were not provided: <--scope <NAME>|--selector <CEL>|--environment <NAME>>\n"
            ),
            "{text}"
        );
        let text = failure(&["cluster", "status", "-o", "xml"]);
        assert!(
            text.contains("invalid value 'xml' for '--output <FORM>'"),
            "{text}"
        );
    }

    #[test]
    fn a_group_alone_shows_its_help() {
        let words = ["-o", "json", "scope"].map(str::to_owned);
        let help = help_of(words.into_iter());
        assert!(help.contains("Usage: tidegate scope"), "{help}");
        assert!(help.contains("restart"), "{help}");
    }

    #[test]
    fn every_command_says_what_it_does() {
        fn check(command: &clap::Command, path: &str) {
            for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
                let path = format!("{path} {}", sub.get_name());
                assert!(sub.get_about().is_some(), "{path} has no help");
                for argument in sub.get_arguments() {
                    assert!(
                        argument.get_help().is_some(),
                        "{path} {} has no help",
                        argument.get_id()
                    );
                }
                check(sub, &path);
            }
        }
        let mut built = command();
        built.build();
        check(&built, "tidegate");
    }
}

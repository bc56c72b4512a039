//! What every command works with: the output, and a link to the cluster that is made when it is
//! first needed.

use std::path::PathBuf;

use clap::Args;
use tidegate_proto::control::v1 as api;
use tidegate_shared::error::Reason;
use tidegate_shared::id::{DeploymentId, ShortId};
use tidegate_shared::spec::Kind;
use tokio::sync::OnceCell;

use crate::connect::Client;
use crate::context;
use crate::errors::{Failure, Result};
use crate::names;
use crate::output::{ColorChoice, Format, Output};
use crate::pages;
use crate::rpc;

/// Flags that every command takes.
#[derive(Debug, Clone, Args)]
pub struct GlobalArgs {
    /// Form of the output: table, wide, json or yaml
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        hide_env_values = true,
        value_name = "FORM",
        env = "TIDEGATE_OUTPUT",
        help_heading = "Everywhere"
    )]
    pub output: Format,
    /// Which cluster, as whom: the name of a context, or the path of a context's folder
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        env = "TIDEGATE_CONTEXT",
        hide_env_values = true,
        help_heading = "Everywhere"
    )]
    pub context: Option<String>,
    /// Folder of the contexts [default: ~/.config/tidegate]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "TIDEGATE_CONFIG_DIR",
        hide_env_values = true,
        help_heading = "Everywhere"
    )]
    pub config_dir: Option<PathBuf>,
    /// When to use colours: auto, always or never; NO_COLOR switches them off too
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "WHEN",
        help_heading = "Everywhere"
    )]
    pub color: ColorChoice,
}

/// One invocation.
#[derive(Debug)]
pub struct Session {
    /// Where results go.
    pub output: Output,
    args: GlobalArgs,
    client: OnceCell<Client>,
}

impl Session {
    /// Looks at the flags; connects to nothing.
    pub fn new(args: GlobalArgs) -> Self {
        Self {
            output: Output::new(args.output, args.color),
            args,
            client: OnceCell::new(),
        }
    }

    /// Folder of the contexts.
    ///
    /// # Errors
    /// None is known.
    pub fn config_folder(&self) -> Result<PathBuf> {
        context::config_folder(self.args.config_dir.as_deref())
    }

    /// The context that was asked for by flag or environment.
    pub fn wanted_context(&self) -> Option<&str> {
        self.args.context.as_deref().filter(|name| !name.is_empty())
    }

    /// The link to the cluster.
    ///
    /// # Errors
    /// No usable context, or no coordinator answers.
    pub async fn client(&self) -> Result<&Client> {
        self.client
            .get_or_try_init(|| async {
                let context = context::select(&self.config_folder()?, self.wanted_context())?;
                Client::connect(context).await
            })
            .await
    }

    /// Every object of a kind (none: of every kind), all pages.
    ///
    /// # Errors
    /// The cluster's.
    pub async fn objects(&self, kind: Option<Kind>, selector: &str) -> Result<Vec<api::Object>> {
        let client = self.client().await?;
        let objects = pages::gather(0, |page| {
            let request = api::ListObjectsRequest {
                kind: kind.map(|kind| kind.to_string()).unwrap_or_default(),
                selector: selector.to_owned(),
                page,
            };
            async move {
                let answer = rpc!(client, objects_client::ObjectsClient, list, request).await?;
                Ok((answer.objects, answer.next_page_token))
            }
        });
        objects.await
    }

    /// Adds "did you mean" to a refusal that says not found: the names that were given are looked
    /// up among those that are there.
    pub async fn suggest(&self, failure: Failure, given: &[(Kind, &str)]) -> Failure {
        if !failure.is(Reason::NotFound) {
            return failure;
        }
        // The refusal knows better which of several names is meant.
        let named = missing(failure.message());
        let named = named.iter().map(|(kind, name)| (*kind, name.as_str()));
        let given: Vec<_> = named.chain(given.iter().copied()).collect();
        for (kind, name) in given {
            let Ok(present) = self.objects(Some(kind), "").await else {
                continue;
            };
            let present: Vec<String> = present
                .into_iter()
                .filter_map(|object| object.metadata.map(|metadata| metadata.name))
                .collect();
            if present.iter().any(|found| found == name) {
                continue;
            }
            let near = names::nearest(name, present.iter().map(String::as_str));
            return failure.hint(match near {
                Some(near) => {
                    format!("did you mean {kind} \"{near}\"? `tidegate {kind} list` shows all")
                }
                None if present.is_empty() => {
                    format!("there is no {kind} yet: create one with `tidegate {kind} create`")
                }
                None => format!("`tidegate {kind} list` shows what is there"),
            });
        }
        failure
    }

    /// The deployment that a person means: a ULID, a short id, or a scope (its candidate, else its
    /// active one, else the last one).
    ///
    /// # Errors
    /// It is none of them.
    pub async fn deployment(&self, reference: &str) -> Result<api::Deployment> {
        self.find_deployment(reference, false).await
    }

    /// As [`Session::deployment`], but a scope stands for its newest deployment, however it ended.
    ///
    /// # Errors
    /// As there.
    pub async fn newest_deployment(&self, reference: &str) -> Result<api::Deployment> {
        self.find_deployment(reference, true).await
    }

    async fn find_deployment(&self, reference: &str, newest: bool) -> Result<api::Deployment> {
        let client = self.client().await?;
        let is_id = reference.parse::<DeploymentId>().is_ok();
        if is_id || reference.parse::<ShortId>().is_ok() {
            let id = if is_id {
                reference.to_uppercase()
            } else {
                reference.to_lowercase()
            };
            let request = api::GetDeploymentRequest { id };
            let found = rpc!(client, deployments_client::DeploymentsClient, get, request).await;
            match found {
                Err(failure) if failure.is(Reason::NotFound) && !is_id => {}
                other => return other,
            }
        }
        let request = api::ScopeRequest {
            name: reference.to_owned(),
        };
        let view = match rpc!(client, scopes_client::ScopesClient, view, request).await {
            Ok(view) => view,
            Err(failure) if failure.is(Reason::NotFound) || failure.is(Reason::InvalidField) => {
                let failure = Failure::new(
                    Reason::NotFound,
                    format!("there is no deployment and no scope \"{reference}\""),
                )
                .hint("give a deployment's id (`tidegate deployment list`) or a scope's name (`tidegate scope list`)");
                return Err(self.suggest(failure, &[(Kind::Scope, reference)]).await);
            }
            Err(failure) => return Err(failure),
        };
        let waiting = view.waiting.into_iter().next();
        let recent = view.recent.into_iter().next();
        let found = if newest {
            view.candidate.or(waiting).or(recent).or(view.active)
        } else {
            view.candidate.or(waiting).or(view.active).or(recent)
        };
        found.ok_or_else(|| {
            Failure::new(
                Reason::NotFound,
                format!("the scope \"{reference}\" has no deployment"),
            )
            .hint(format!("deploy to it with `tidegate deploy APP VERSION --scope {reference}`, or see `tidegate deployment history {reference}`"))
        })
    }
}

/// The object that a refusal names: `there is no application "web"`.
fn missing(message: &str) -> Option<(Kind, String)> {
    let (_, rest) = message.rsplit_once("there is no ")?;
    let (kind, rest) = rest.split_once(" \"")?;
    let (name, _) = rest.split_once('"')?;
    Some((kind.parse().ok()?, name.to_owned()))
}

/// `KEY=VALUE` pairs of a repeated flag, which may hold several joined by commas.
///
/// # Errors
/// Names the flag and the pair.
pub fn pairs(
    flag: &str,
    given: &[String],
    split_commas: bool,
) -> Result<std::collections::BTreeMap<String, String>> {
    let mut pairs = std::collections::BTreeMap::new();
    let pieces = given.iter().flat_map(|text| {
        if split_commas {
            text.split(',').collect::<Vec<_>>()
        } else {
            vec![text.as_str()]
        }
    });
    for piece in pieces {
        let Some((key, value)) = piece
            .split_once('=')
            .filter(|(key, _)| !key.trim().is_empty())
        else {
            return Err(Failure::usage(format!(
                "{flag} {piece}: want KEY=VALUE, such as {flag} region=eu"
            )));
        };
        pairs.insert(key.trim().to_owned(), value.to_owned());
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_tell_what_is_missing() {
        assert_eq!(
            missing("parameter \"x\": target.application: there is no application \"web\""),
            Some((Kind::Application, "web".to_owned()))
        );
        assert_eq!(missing("there is no release web 1.2"), None);
        assert_eq!(missing("nothing is missing"), None);
    }

    #[test]
    fn pairs_are_read_and_mistakes_name_the_flag() {
        let given = ["a=1,b=2=3".to_owned(), "c=".to_owned()];
        let found = pairs("--label", &given, true).unwrap();
        assert_eq!(found["b"], "2=3");
        assert_eq!(found["c"], "");
        let single = pairs("--env", &["A=x,y".to_owned()], false).unwrap();
        assert_eq!(single["A"], "x,y");
        let failure = pairs("--label", &["x".to_owned()], true).unwrap_err();
        assert!(failure.message().starts_with("--label x: want KEY=VALUE"));
    }
}

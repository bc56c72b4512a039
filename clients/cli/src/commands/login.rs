//! `tidegate login`: a person's first certificate, by a token.

use clap::Args;
use tidegate_proto::enroll::v1 as enroll;
use tidegate_proto::enroll::v1::enroll_client::EnrollClient;
use tidegate_shared::error::Reason;
use tidegate_shared::token::JoinToken;

use crate::connect;
use crate::context::{self, Context, Description};
use crate::errors::{Failure, Result};
use crate::session::Session;
use crate::{time, tls};

/// By which token, where.
#[derive(Debug, Args)]
#[command(
    after_help = "An administrator makes the token with `tidegate token create user --name NAME`. It tells which\nserver to trust, so nothing else has to be compared.\n\nExample:\n  tidegate login --server coordinator-1.example:7443 --token tg1_…"
)]
pub struct LoginArgs {
    /// The token, whole
    #[arg(
        long,
        value_name = "TOKEN",
        env = "TIDEGATE_TOKEN",
        hide_env_values = true
    )]
    token: String,
    /// Enrolment address of a coordinator
    #[arg(long, value_name = "HOST:PORT", env = "TIDEGATE_SERVER")]
    server: String,
    /// What to call the cluster here [default: its trust domain]
    #[arg(long = "name", value_name = "NAME")]
    name: Option<String>,
    /// Take the place of a context of another cluster with this name
    #[arg(long)]
    replace: bool,
}

impl LoginArgs {
    /// Does it.
    ///
    /// # Errors
    /// A wrong token or address, a server that is not the token's, or its refusal.
    pub async fn run(self, session: &Session) -> Result<()> {
        let token: JoinToken =
            self.token
                .parse()
                .map_err(|error: tidegate_shared::token::TokenError| {
                    Failure::new(Reason::TokenMalformed, error.to_string())
                })?;
        let server = with_port(&self.server);
        context::check_address(&server)
            .map_err(|message| Failure::usage(format!("--server: {message}")))?;
        let folder = session.config_folder()?;
        // The global --context names the new context too, so that both spellings do what is meant.
        let name = self
            .name
            .clone()
            .or_else(|| session.wanted_context().map(str::to_owned));
        let key = rcgen::KeyPair::generate()
            .map_err(|error| Failure::new(Reason::Internal, error.to_string()))?;
        let answer = enroll(&server, &token, &key).await?;
        let addresses = |pick: fn(&enroll::CoordinatorAddresses) -> &String| -> Vec<String> {
            let found = answer.coordinators.iter().map(pick);
            found
                .filter(|address| !address.is_empty())
                .cloned()
                .collect()
        };
        let name = name.unwrap_or_else(|| name_of(&answer.trust_domain));
        let context = Context {
            folder: folder.clone(),
            description: Description {
                name: name.clone(),
                cluster_id: answer.cluster_id.clone(),
                trust_domain: answer.trust_domain.clone(),
                user: answer.name.clone(),
                control: addresses(|a| &a.control),
                http: addresses(|a| &a.http),
                enroll: addresses(|a| &a.enroll),
            },
            certificate: answer.certificate_chain.clone().into_bytes(),
            key: key.serialize_pem().into_bytes(),
            roots: answer.roots.clone().into_bytes(),
        };
        context::adopt(&folder, context, &name, true, self.replace)?;
        session.output.line(&format!(
            "logged in to {} as {} until {}; the certificate renews itself while it is used\ncontext \"{name}\" is in use",
            answer.trust_domain,
            answer.name,
            time::stamp(answer.not_after_ms)
        ))
    }
}

/// Default port of the enrolment listener.
const ENROLL_PORT: u16 = 7443;

fn with_port(server: &str) -> String {
    let bare = !server.contains(':') || server.ends_with(']');
    if bare && !server.is_empty() {
        format!("{server}:{ENROLL_PORT}")
    } else {
        server.to_owned()
    }
}

/// A context's name from a trust domain: what a name cannot hold becomes a hyphen.
pub fn name_of(trust_domain: &str) -> String {
    let fitting: String = trust_domain
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(63)
        .collect();
    let trimmed = fitting.trim_matches('-');
    if trimmed.is_empty() {
        "default".to_owned()
    } else {
        trimmed.to_owned()
    }
}

async fn enroll(
    server: &str,
    token: &JoinToken,
    key: &rcgen::KeyPair,
) -> Result<enroll::EnrollResponse> {
    let config = tls::enrolling(token.fingerprint)?;
    let channel = connect::open(server, config).await.map_err(|failure| {
        if failure.is(Reason::WrongServer) {
            return Failure::new(
                Reason::WrongServer,
                format!("{server} is not the cluster that the token was made by"),
            )
            .at(format!("{server}: {}", failure.message()));
        }
        Failure::new(Reason::Unreachable, format!("{server} cannot be reached"))
            .at(format!("{server}: {}", failure.message()))
            .hint("give the enrolment address of a coordinator: --server HOST:7443")
    })?;
    let csr = connect::csr(key).map_err(|message| Failure::new(Reason::Internal, message))?;
    let request = enroll::EnrollRequest {
        token: token.reveal(),
        csr: csr.into(),
        name: String::new(),
        facts: std::collections::HashMap::new(),
        addresses: None,
    };
    // A token may have one use: the request is not repeated by itself.
    EnrollClient::new(channel)
        .enroll(request)
        .await
        .map(tonic::Response::into_inner)
        .map_err(connect::failure_of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ports_have_defaults() {
        assert_eq!(name_of("Shop.Example"), "shop-example");
        assert_eq!(name_of("..."), "default");
        assert_eq!(with_port("a.example"), "a.example:7443");
        assert_eq!(with_port("a.example:1"), "a.example:1");
        assert_eq!(with_port("[::1]"), "[::1]:7443");
    }
}

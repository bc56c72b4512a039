//! `tidegate whoami`: as whom the cluster sees this person.

use tidegate_proto::control::v1 as api;

use crate::errors::Result;
use crate::output::dash;
use crate::session::Session;
use crate::{rpc, time};

/// Does it.
///
/// # Errors
/// The cluster's.
pub async fn run(session: &Session) -> Result<()> {
    let client = session.client().await?;
    let answer = rpc!(
        client,
        cluster_client::ClusterClient,
        who_am_i,
        api::WhoAmIRequest {}
    )
    .await?;
    session.output.emit(&answer, |_| {
        let field = |name: &str, value: &str| session.output.field(name, dash(value));
        let until = format!(
            "{} ({})",
            time::stamp(answer.certificate_not_after_ms),
            time::until(answer.certificate_not_after_ms, time::now_ms())
        );
        [
            field("name", &answer.name),
            field("identity", &answer.identity),
            field("kind", &answer.kind),
            field("teams", &answer.teams.join(", ")),
            field("cluster", &answer.cluster_id),
            field("coordinator", &answer.coordinator),
            field("certificate", &format!("until {until}")),
            field("context", &client.context().folder.display().to_string()),
            super::user::grants_told(session, &answer.grants),
        ]
        .concat()
    })
}

//! Removes what the built-in store need not hold any more.
//!
//! The leader proposes which releases give up their assets (the core decides, replicas agree), and
//! every node removes from its own disk what the state does not need. Nothing is removed that is
//! younger than `blobs.unclaimed`, so that an upload is there when its release is made, and nothing
//! by a node that cannot hear from a majority: its state may be of old.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tidegate_coordinator_core::command::Command;
use tidegate_coordinator_core::{Actor, collection};
use tidegate_shared::digest::Digest;
use tidegate_shared::time::{Span, Timestamp};

use crate::api::Context;

/// A look at most and at least so often.
const SLOWEST: Duration = Duration::from_secs(600);
const FASTEST: Duration = Duration::from_secs(1);

/// Looks now and then until the node stops.
pub async fn run(context: Arc<Context>) {
    let config = &context.config;
    let shorter = config.keep_blobs.min(config.keep_unclaimed).to_std();
    let pause = (shorter / 4).clamp(FASTEST, SLOWEST);
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = context.stop.cancelled() => return,
        }
        if context.leads() {
            review(&context).await;
        }
        sweep(&context).await;
    }
}

async fn review(context: &Arc<Context>) {
    let view = context.query.stale();
    let keep = context.config.keep_blobs;
    let Some(review) = collection::review(&view.state, view.state.at.max(context.now()), keep)
    else {
        return;
    };
    let Ok(key) = context.own_request() else {
        return;
    };
    let command = Command::ReviewReleases(review);
    if let Err(error) = context.propose(Actor::System, key, command).await {
        tracing::debug!(%error, "releases are reviewed at the next look");
    }
}

async fn sweep(context: &Arc<Context>) {
    let Ok(view) = context.query.linearizable().await else {
        return;
    };
    let blobs = match context.blobs.list().await {
        Ok(blobs) => blobs,
        Err(error) => {
            tracing::warn!(%error, "the store cannot be listed");
            return;
        }
    };
    let needed = collection::needed(&view.state);
    for digest in removable(
        &blobs,
        &needed,
        context.now(),
        context.config.keep_unclaimed,
    ) {
        match context.blobs.remove(&digest).await {
            Ok(()) => tracing::info!(%digest, "a blob that no release needs was removed"),
            Err(error) => tracing::warn!(%digest, %error, "a blob cannot be removed"),
        }
    }
}

fn removable(
    blobs: &[(Digest, Timestamp)],
    needed: &BTreeSet<Digest>,
    now: Timestamp,
    unclaimed: Span,
) -> Vec<Digest> {
    blobs
        .iter()
        .filter(|(digest, claimed)| !needed.contains(digest) && now.since(*claimed) > unclaimed)
        .map(|(digest, _)| *digest)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_needed_and_the_young_stay() {
        let digest = |byte: u8| Digest::from_bytes([byte; 32]);
        let at = Timestamp::from_millis;
        let blobs = [(digest(1), at(0)), (digest(2), at(0)), (digest(3), at(90))];
        let needed = BTreeSet::from([digest(1)]);
        let span = Span::from_millis(50);
        assert_eq!(removable(&blobs, &needed, at(100), span), [digest(2)]);
        // A clock that was set back removes nothing.
        assert!(removable(&blobs, &needed, at(0), span).is_empty());
    }
}

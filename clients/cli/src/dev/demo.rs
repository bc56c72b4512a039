//! The demo: three versions of an application, told as it happens.
//!
//! Version 1 is published, version 2 takes over step by step under load, version 3 fails a fifth
//! of its requests and is taken back by a rule. The figures are those of the load generator's own
//! clock and counters; the cluster's word is checked against them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use tidegate_proto::control::v1 as api;
use tidegate_proto::control::v1::deployment::Status;
use tidegate_shared::error::Reason;
use tidegate_shared::selector::Labels;
use tidegate_shared::spec::{AssetKind, AssetSource, AssetSpec, Kind, ObjectSpec, ReleaseSpec};
use tokio::time::Instant;

use super::cluster::Cluster;
use super::load::{Load, Picture};
use super::package;
use super::story::Story;
use crate::commands::objects::{self, Change};
use crate::commands::release;
use crate::errors::{Failure, Result};
use crate::output::{Output, Tone, weight};
use crate::session::Session;
use crate::upload::Asset;
use crate::{context, entropy, render, rpc};

const APPLICATION: &str = "hello";
const SCOPE: &str = "hello-prod";
const STRATEGY: &str = "careful";
/// A deployment of the demo takes longer only when something is wrong.
const DEPLOYMENT_LIMIT: Duration = Duration::from_secs(30);
/// From the first bad answer to all traffic back on the old version.
const BACK_LIMIT: Duration = Duration::from_secs(2);
/// How often the deployment is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Requests that must have been seen before something is believed.
const ENOUGH: u64 = 100;

/// What was promised, and whether it was kept.
struct Check {
    what: String,
    kept: bool,
}

/// Starts the cluster and plays; exit status 0 only if everything went as it should.
///
/// # Errors
/// Something could not even be tried.
pub async fn play(cluster: &mut Cluster, output: Output) -> Result<u8> {
    let story = Story::new(output);
    story.chapter("A cluster of real processes, with mutual TLS from a fresh authority")?;
    story.tell(
        Tone::Faint,
        &format!("everything is written to {}", cluster.dir().display()),
    )?;
    let examples = cluster.dir().join("releases");
    context::make_folder(&examples)?;
    let (started, assets) = tokio::join!(
        cluster.start(),
        package::pack(&examples, &[("1", 0.0), ("2", 0.0), ("3", 0.2)])
    );
    started?;
    let assets = assets?;
    story.tell(
        Tone::Good,
        &format!(
            "the cluster is up, {} agents wait for work",
            cluster.agent_count()
        ),
    )?;
    let port = cluster.scope_port()?;
    describe(cluster.session(), port).await?;
    let scene = Scene {
        session: cluster.session(),
        story,
        proxies: cluster.proxies(port),
    };
    let outcome = scene.play(&assets).await;
    if outcome.is_err() {
        // Which process died says more than a call that failed because of it.
        let death = tokio::time::timeout(Duration::from_millis(300), cluster.first_death()).await;
        if let Ok(death) = death {
            return Err(death);
        }
    }
    let (checks, picture, back) = outcome?;
    summary(output, story, &checks, &picture, back)
}

/// The objects that the demo needs.
async fn describe(session: &Session, port: u16) -> Result<()> {
    let rule = json!({
        "metric": "http.error_rate", "comparison": "greater_than", "threshold": "0.1",
        "judge": "raw", "window": "1s", "min_samples": 20,
    });
    let strategy = json!({
        "traffic": { "steps": [
            { "percent": 10, "hold": "3s" }, { "percent": 50, "hold": "3s" }, { "percent": 100, "hold": "2s" },
        ] },
        "rollback": { "rules": [rule] },
        "bake": "2s",
        "drain": "1s",
    });
    let scope = json!({
        "application": APPLICATION, "environment": "production", "port": port, "agents": "role=web",
        "health_check": {
            "http": { "path": "/healthz" }, "interval": "200ms", "timeout": "1s", "healthy_threshold": 1,
        },
    });
    let wanted = [
        (Kind::Application, APPLICATION, json!({})),
        (Kind::Environment, "production", json!({ "tier": 3 })),
        (Kind::Strategy, STRATEGY, strategy),
        (Kind::Scope, SCOPE, scope),
    ];
    for (kind, name, spec) in wanted {
        let spec = ObjectSpec::from_json(kind, &spec.to_string())
            .map_err(|error| Failure::new(Reason::Internal, error.to_string()))?;
        let change = Change {
            secret: None,
            kind,
            name: name.to_owned(),
            labels: Labels::new(),
            spec,
            revision: 0,
            dry_run: false,
            must_not_exist: true,
        };
        objects::apply(session, change).await?;
    }
    Ok(())
}

struct Scene<'a> {
    session: &'a Session,
    story: Story,
    proxies: Vec<SocketAddr>,
}

type Outcome = (Vec<Check>, Picture, Option<Duration>);

impl Scene<'_> {
    async fn play(&self, assets: &[Asset]) -> Result<Outcome> {
        let mut checks = Vec::new();
        let mut check = |what: String, kept: bool| checks.push(Check { what, kept });
        let told = self.story;

        told.chapter("Version 1 is published to the scope hello-prod")?;
        let first = self.release_and_deploy("1", &assets[0]).await?;
        let first = self.follow(&first, None).await?;
        check(
            format!("version 1 ended {}", first.status().as_str_name()),
            first.status() == Status::Finalized,
        );
        let load = Load::start(&self.proxies);
        told.tell(
            Tone::Plain,
            &format!(
                "load starts: keep-alive and fresh connections to {} proxies",
                self.proxies.len()
            ),
        )?;
        self.until_seen(&load, "1", ENOUGH).await?;

        told.chapter("Version 2 takes over: 10 → 50 → 100 % of the traffic, step by step")?;
        let second = self.release_and_deploy("2", &assets[1]).await?;
        let second = self.follow(&second, Some(&load)).await?;
        check(
            format!("version 2 ended {}", second.status().as_str_name()),
            second.status() == Status::Finalized,
        );
        self.until_seen(&load, "2", ENOUGH).await?;

        told.chapter("Version 3 fails a fifth of its requests; the rule is: more than 10 % errors within 1 s")?;
        let third = self.release_and_deploy("3", &assets[2]).await?;
        let third = self.follow(&third, Some(&load)).await?;
        check(
            format!("version 3 ended {}", third.status().as_str_name()),
            third.status() == Status::RolledBack,
        );
        // The old version must be seen alone for a while before it is believed.
        let before = load.picture().of("2").requests;
        self.until_seen(&load, "2", before + 2 * ENOUGH).await?;
        let picture = load.finish().await;
        let bad = picture.of("3");
        let back = match (bad.first_failure, bad.last_answer) {
            (Some(first), Some(last)) => Some(last.saturating_duration_since(first)),
            _ => None,
        };
        check(
            match back {
                Some(back) => format!(
                    "all traffic was back on version 2 {:.2} s after the first bad answer (limit 2 s)",
                    back.as_secs_f64()
                ),
                None => "no bad answer of version 3 was ever seen".to_owned(),
            },
            back.is_some_and(|back| back <= BACK_LIMIT),
        );
        let failed = picture.of("1").failures + picture.of("2").failures + picture.broken;
        check(
            format!("{failed} failed requests of versions 1 and 2"),
            failed == 0,
        );
        Ok((checks, picture, back))
    }

    /// Uploads a release and starts its deployment.
    async fn release_and_deploy(&self, version: &str, asset: &Asset) -> Result<api::Deployment> {
        let spec = ReleaseSpec {
            assets: vec![AssetSpec {
                name: tidegate_shared::id::Name::new(APPLICATION)
                    .map_err(|error| Failure::new(Reason::Internal, error.to_string()))?,
                kind: AssetKind::Archive,
                platform: "any".to_owned(),
                sha256: asset.digest,
                size: asset.size,
                source: AssetSource::Store,
                run: package::run_spec(),
            }],
            ..ReleaseSpec::default()
        };
        let files = [asset.clone()];
        release::publish(
            self.session,
            APPLICATION,
            version,
            BTreeMap::new(),
            &spec,
            &files,
        )
        .await?;
        self.story.tell(
            Tone::Plain,
            &format!(
                "release {version} is uploaded: {} (sha256 {}…)",
                crate::output::bytes(asset.size),
                asset.digest.short()
            ),
        )?;
        self.until_ready(version).await?;
        let client = self.session.client().await?;
        let request = api::CreateDeploymentRequest {
            request_id: entropy::request_id()?.to_string(),
            application: APPLICATION.to_owned(),
            version: version.to_owned(),
            scopes: vec![SCOPE.to_owned()],
            strategy: STRATEGY.to_owned(),
            ..api::CreateDeploymentRequest::default()
        };
        let answer = rpc!(
            client,
            deployments_client::DeploymentsClient,
            create,
            request
        )
        .await?;
        answer.deployments.into_iter().next().ok_or_else(|| {
            Failure::new(
                Reason::Internal,
                "the cluster made no deployment and no refusal",
            )
        })
    }

    /// Waits until the release's assets are on a majority of the coordinators.
    async fn until_ready(&self, version: &str) -> Result<()> {
        let client = self.session.client().await?;
        let deadline = Instant::now() + DEPLOYMENT_LIMIT;
        loop {
            let request = api::GetReleaseRequest {
                application: APPLICATION.to_owned(),
                version: version.to_owned(),
            };
            let found = rpc!(client, releases_client::ReleasesClient, get, request).await?;
            if found.status == "ready" {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Failure::new(
                    Reason::ReleaseNotReady,
                    format!("release {version} is still {}", found.status),
                ));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Tells each change of a deployment until its end.
    async fn follow(
        &self,
        started: &api::Deployment,
        load: Option<&Load>,
    ) -> Result<api::Deployment> {
        let client = self.session.client().await?;
        let deadline = Instant::now() + DEPLOYMENT_LIMIT;
        let (mut status, mut held, mut failed) = (Status::Unspecified, None, String::new());
        loop {
            let request = api::GetDeploymentRequest {
                id: started.id.clone(),
            };
            let now = rpc!(client, deployments_client::DeploymentsClient, get, request).await?;
            let version = &now.version;
            let bad = now
                .evidence
                .iter()
                .find(|evidence| evidence.verdict == "fail");
            if let Some(bad) = bad.filter(|bad| bad.message != failed) {
                self.story
                    .tell(Tone::Bad, &format!("the rule is met: {}", bad.message))?;
                failed.clone_from(&bad.message);
            }
            let traffic = now.traffic.unwrap_or_default();
            let actual = (traffic.actual > 0 || held.is_some()).then_some(traffic.actual);
            if actual != held && !now.initial {
                held = actual;
                let seen = load.map(|load| load.picture().of(version));
                let seen = seen.map_or_else(String::new, |seen| {
                    format!(
                        "; the load saw {} answers of it, {} bad",
                        seen.requests, seen.failures
                    )
                });
                let share = weight(i64::from(traffic.actual));
                self.story.tell(
                    Tone::Plain,
                    &format!("version {version} has {share} of the traffic{seen}"),
                )?;
            }
            if now.status() != status {
                status = now.status();
                self.story.tell(render::tone(status), &status_line(&now))?;
            }
            if render::has_ended(status) {
                return Ok(now);
            }
            if Instant::now() > deadline {
                return Err(Failure::new(
                    Reason::Internal,
                    format!(
                        "version {version} is still {} after {} s",
                        status.as_str_name(),
                        DEPLOYMENT_LIMIT.as_secs()
                    ),
                )
                .at(crate::follow::progress_line(&now)));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until the load saw so many answers of a version.
    async fn until_seen(&self, load: &Load, version: &str, count: u64) -> Result<()> {
        let deadline = Instant::now() + DEPLOYMENT_LIMIT;
        loop {
            let picture = load.picture();
            if picture.of(version).requests >= count {
                return Ok(());
            }
            if Instant::now() > deadline {
                let failure = Failure::new(
                    Reason::Internal,
                    format!(
                        "the load saw only {} answers of version {version}",
                        picture.of(version).requests
                    ),
                );
                return Err(picture.words.iter().fold(failure, Failure::at));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn status_line(deployment: &api::Deployment) -> String {
    let version = &deployment.version;
    let what = match deployment.status() {
        Status::CreatingApproval => "waits for approval",
        Status::Pending => "is accepted",
        Status::Creating => "is fetched, checked against its digest and unpacked at the agents",
        Status::WaitingForInstances if deployment.initial => "starts and must become healthy",
        Status::WaitingForInstances => "starts beside the old one and must become healthy",
        Status::Running if deployment.initial => "is healthy and gets all traffic at once",
        Status::Running => "is healthy; traffic moves now",
        Status::Finalizing if deployment.initial => "stays",
        Status::Finalizing => "stays: the old one drains and stops",
        Status::Finalized => "is the active one",
        Status::RollingBack => "is taken back: all traffic to the old version at once",
        Status::RolledBack => "is gone; the old version serves on",
        Status::Cancelling | Status::Cancelled => "was cancelled",
        Status::Failed => "failed",
        Status::CreatingApprovalDenied => "was denied",
        Status::Deleting | Status::Deleted => "was deleted",
        Status::Unspecified => "is in a state that this program does not know",
    };
    let why = match deployment.status() {
        Status::RollingBack | Status::RolledBack | Status::Failed | Status::Cancelled => {
            [deployment.message.as_str(), &deployment.reason]
                .into_iter()
                .find(|text| !text.is_empty())
        }
        _ => None,
    };
    let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
    format!(
        "{:<21} version {version} {what}{why}",
        deployment.status().as_str_name()
    )
}

fn summary(
    output: Output,
    story: Story,
    checks: &[Check],
    picture: &Picture,
    back: Option<Duration>,
) -> Result<u8> {
    story.chapter("Summary")?;
    let mut table = crate::output::Table::new(&["VERSION", "REQUESTS", "FAILED", "ERROR RATE"]);
    for (version, seen) in &picture.versions {
        let rate = seen.failures as f64 * 100.0 / (seen.requests.max(1)) as f64;
        table.row([
            version.clone(),
            seen.requests.to_string(),
            seen.failures.to_string(),
            format!("{rate:.1} %"),
        ]);
    }
    table.row([
        "no answer".to_owned(),
        picture.broken.to_string(),
        picture.broken.to_string(),
        "-".to_owned(),
    ]);
    output.text(&table.render(output, ""))?;
    output.line(&format!("{} requests in all", picture.total()))?;
    if let Some(back) = back {
        output.line(&format!(
            "first bad answer → 100 % back on version 2: {:.2} s",
            back.as_secs_f64()
        ))?;
    }
    for words in &picture.words {
        output.line(&output.paint(Tone::Bad, &format!("broken request: {words}")))?;
    }
    output.line("")?;
    for check in checks {
        let (mark, tone) = if check.kept {
            ("✓", Tone::Good)
        } else {
            ("✗", Tone::Bad)
        };
        output.line(&output.paint(tone, &format!("{mark} {}", check.what)))?;
    }
    let all = checks.iter().all(|check| check.kept);
    let (tone, words) = if all {
        (Tone::Good, "everything went as it should")
    } else {
        (Tone::Bad, "the demo did not go as it should")
    };
    output.line(&format!(
        "\n{} ({:.1} s)",
        output.paint(tone, words),
        story.seconds()
    ))?;
    Ok(u8::from(!all))
}

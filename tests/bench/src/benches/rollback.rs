//! A version that fails every request gets 5 % of the traffic: how long until it gets none.
//!
//! The clock is that of the load generator: from the first bad answer that a client saw to the last
//! answer of the bad version that any client saw.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tidegate_harness::cluster::{programs, text};
use tidegate_harness::{Cluster, Shape, archive, poll};

use crate::Effort;
use crate::http::{Answer, Load};
use crate::ours::Ours;
use crate::report::{Better, Figure, Goal, Reference, Report};

/// A deployment may take so long.
const LIMIT: Duration = Duration::from_secs(120);
/// Load goes on so long after the end, to see that nothing of the bad version comes any more.
const AFTER: Duration = Duration::from_secs(2);
const SCOPE: &str = "shop";

/// A rule, and what is wanted of it.
struct Case {
    strategy: &'static str,
    /// Fields of the rule beside metric, comparison, threshold and judge.
    rule: &'static str,
    name: &'static str,
    goal: f64,
}

const CASES: [Case; 2] = [
    Case {
        strategy: "default-window",
        rule: "",
        name: "first bad answer until the last one, window 30 s (default)",
        goal: 4_500.0,
    },
    Case {
        strategy: "short-window",
        rule: ", window: 250ms, min_samples: 5",
        name: "the same, window 250 ms and at least 5 requests",
        goal: 1_500.0,
    },
];

/// Measures.
pub(super) async fn run(effort: Effort) -> anyhow::Result<Report> {
    let per_second = if effort.short { 200 } else { 1_000 };
    let shape = Shape {
        coordinators: if effort.short { 1 } else { 3 },
        agents: 1,
    };
    let ours = Ours::start(shape, super::DEFAULT_TICK).await?;
    let (mut ours, target) = ours
        .with_cluster(|cluster| {
            let port = prepare(cluster)?;
            Ok(cluster.proxy(0, port))
        })
        .await?;
    let mut times = vec![Vec::new(); CASES.len()];
    let (mut lost, mut bad, mut asked) = (0, Vec::new(), 0);
    for turn in 0..effort.repetitions {
        for (number, case) in CASES.iter().enumerate() {
            let load = Load::start(target, per_second);
            let version = format!("2.{turn}.{number}");
            let strategy = case.strategy;
            let rolled = version.clone();
            (ours, ()) = ours
                .with_cluster(move |cluster| roll_back(cluster, &rolled, strategy))
                .await?;
            tokio::time::sleep(AFTER).await;
            let answers = load.stop().await;
            let back = time_back(&answers, &version)?;
            times[number].push(back.as_secs_f64() * 1e3);
            asked += answers.len();
            lost += answers
                .iter()
                .filter(|answer| answer.version != version && answer.status != 200)
                .count();
            bad.push(answers.iter().filter(|a| a.version == version).count() as f64);
        }
    }
    ours.end().await?;
    let mut figures: Vec<Figure> = CASES
        .iter()
        .zip(times)
        .map(|(case, samples)| Figure {
            name: case.name.to_owned(),
            unit: "ms",
            better: Better::Lower,
            ours: samples,
            reference: Some(threshold_check()),
            goal: Goal::AtMost(case.goal),
        })
        .collect();
    figures.push(crate::measured::alone(
        "answers of the bad version in one deployment",
        "answers",
        Better::Lower,
        bad,
        Goal::None,
    ));
    figures.push(crate::measured::alone(
        "other requests that failed in all deployments",
        "requests",
        Better::Lower,
        vec![lost as f64],
        Goal::AtMost(0.0),
    ));
    Ok(Report {
        bench: "rollback",
        versions: vec![("Tidegate".to_owned(), Ours::version())],
        method: vec![
            format!(
                "{} coordinators, 1 agent, {per_second} requests/s on 50 kept connections through the agent's proxy, {asked} requests in all; 5 % go to a version that answers 500 to every one",
                shape.coordinators
            ),
            "the rule: http.server_error_rate greater than 0.02, judge raw; the time is from the first bad answer that the load generator saw to the last".to_owned(),
            "reference, computed and not measured: a check of a 30 s window every 30 s that acts at once. The failure begins at any moment of the window alike, and every request of the version fails, so the next check sees it: 0 to 30 s, 15 s in the middle. A check that wants two windows in a row takes 30 to 60 s".to_owned(),
        ],
        figures,
        notes: Vec::new(),
    })
}

/// The middle of what a check of the last 30 s every 30 s can take, in the best case for it.
fn threshold_check() -> Reference {
    Reference {
        name: "30 s check".to_owned(),
        samples: vec![30_000.0 / 2.0],
        computed: true,
    }
}

/// From the first bad answer to the last answer of the bad version.
fn time_back(answers: &[Answer], version: &str) -> anyhow::Result<Duration> {
    let of_bad = || answers.iter().filter(|answer| answer.version == version);
    let moment = |at: Option<Instant>| at.context("the bad version was never seen");
    let first = moment(of_bad().map(|a| a.at).min())?;
    let last = moment(of_bad().map(|a| a.at).max())?;
    let rest = answers.iter().filter(|a| a.at > last && a.status == 200);
    ensure!(rest.count() > 0, "nothing answered after the rollback");
    Ok(last - first)
}

/// Makes the objects and a good first version; the scope's port.
fn prepare(cluster: &mut Cluster) -> anyhow::Result<u16> {
    let port = cluster.scope_port()?;
    let strategies: String = CASES
        .iter()
        .map(|case| {
            format!(
                "---\nkind: strategy\nname: {}\nspec:\n  \
                 traffic: {{steps: [{{percent: 5, hold: 10m}}, {{percent: 100, hold: 0s}}]}}\n  \
                 rollback: {{rules: [{{metric: http.server_error_rate, comparison: greater_than, threshold: \"0.02\", judge: raw{}}}]}}\n  \
                 bake: 1s\n  drain: 1s\n",
                case.strategy, case.rule
            )
        })
        .collect();
    let manifests = format!(
        "kind: application\nname: shop\nspec: {{}}\n---\nkind: environment\nname: test\nspec: {{tier: 1}}\n\
         ---\nkind: strategy\nname: at-once\nspec: {{kind: all_in, bake: 0s, drain: 1s}}\n{strategies}\
         ---\nkind: scope\nname: {SCOPE}\nspec:\n  application: shop\n  environment: test\n  port: {port}\n  \
         health_check: {{http: {{path: /healthz}}, interval: 200ms, healthy_threshold: 1}}\n"
    );
    let file = cluster.dir().join("bench.yaml");
    std::fs::write(&file, manifests)?;
    let file = file.display().to_string();
    cluster.tidegate(&["apply", "-f", &file])?.ok()?;
    publish(cluster, "1.0.0", 0.0)?;
    let id = begin(cluster, "1.0.0", "at-once")?;
    ends(cluster, &id, "FINALIZED")?;
    Ok(port)
}

fn publish(cluster: &Cluster, version: &str, error_rate: f64) -> anyhow::Result<()> {
    let file = cluster.dir().join(format!("shop-{version}.tar.gz"));
    let told = format!("{{\"version\": \"{version}\", \"error_rate\": {error_rate:?}}}");
    archive::write(&file, &[("app.json", &told, false)])?;
    let program = programs()?.join("tidegate");
    let run = format!(
        "{} demo-app --release ${{RELEASE_DIR}}/app.json",
        program.display()
    );
    let asset = file.display().to_string();
    cluster
        .tidegate(&[
            "release", "create", "shop", version, "--asset", &asset, "--run", &run,
        ])?
        .ok()?;
    Ok(())
}

fn begin(cluster: &Cluster, version: &str, strategy: &str) -> anyhow::Result<String> {
    let made = cluster
        .tidegate(&[
            "deploy",
            "shop",
            version,
            "--scope",
            SCOPE,
            "--strategy",
            strategy,
        ])?
        .json()?;
    let id = text(&made, "id");
    ensure!(!id.is_empty(), "no id: {made}");
    Ok(id.to_owned())
}

fn roll_back(cluster: &mut Cluster, version: &str, strategy: &str) -> anyhow::Result<()> {
    publish(cluster, version, 1.0)?;
    let id = begin(cluster, version, strategy)?;
    ends(cluster, &id, "ROLLED_BACK")
}

fn ends(cluster: &Cluster, id: &str, wanted: &str) -> anyhow::Result<()> {
    poll::until(&format!("{wanted} of {id}"), LIMIT, || {
        let found = cluster.tidegate(&["deployment", "get", id])?.json()?;
        poll::holds(text(&found, "status") == wanted, || found.to_string())
    })
    .with_context(|| cluster.tails())
}

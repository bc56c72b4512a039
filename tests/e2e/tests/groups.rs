//! Groups through a running cluster: six scopes of a worker, published to one after another, in waves,
//! taken back when one of them fails; and what is told to whoever says something wrong.

use std::fs;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tidegate_e2e::story;
use tidegate_e2e::support::{ROLLOUT, apply};
use tidegate_harness::cluster::{Output, number, text};
use tidegate_harness::{Cluster, Shape, archive, poll};

const ONE: Shape = Shape {
    coordinators: 1,
    agents: 1,
};

/// In the order of their names.
const SCOPES: [&str; 6] = [
    "fleet-a", "fleet-b", "fleet-c", "fleet-d", "fleet-e", "fleet-f",
];

/// The last three are in the south; `fleet-e` is never well with version 2.
fn objects() -> String {
    let mut text = String::from(
        "kind: application\nname: fleet\nspec: {}\n---\n\
         kind: environment\nname: test\nspec: {tier: 1}\n---\n\
         kind: environment\nname: empty\nspec: {tier: 2}\n---\n\
         kind: strategy\nname: swap\nspec:\n  kind: rolling\n  \
         batch: {max_unavailable: 1, hold: 0s, overlap: true}\n  bake: 0s\n  drain: 0s\n---\n\
         kind: strategy\nname: stay\nspec:\n  kind: rolling\n  \
         batch: {max_unavailable: 1, hold: 0s, overlap: true}\n  bake: 1h\n  drain: 0s\n  \
         finalize: manual\n",
    );
    for (position, scope) in SCOPES.iter().enumerate() {
        let region = if position < 3 { "north" } else { "south" };
        let breaks = if *scope == "fleet-e" { "2" } else { "none" };
        text.push_str(&format!(
            "---\nkind: scope\nname: {scope}\nspec:\n  application: fleet\n  environment: test\n  \
             port: none\n  dimensions: {{region: {region}}}\n  parameters: {{BREAKS: \"{breaks}\"}}\n  \
             max_restarts: 1\n  health_check:\n    exec: {{command: well}}\n    interval: 200ms\n    healthy_threshold: 1\n"
        ));
    }
    text
}

fn publish(cluster: &Cluster, version: &str) -> anyhow::Result<()> {
    let file = cluster.dir().join(format!("fleet-{version}.tar.gz"));
    // A worker that does nothing until it is told to end, or ends at once where it breaks.
    let well =
        format!("#!/bin/sh\n[ \"$BREAKS\" != {version} ] || {{ echo broken here; exit 1; }}\n");
    let work = format!("{well}trap 'exit 0' TERM\nwhile :; do sleep 0.1; done\n");
    archive::write(&file, &[("work", &work, true), ("well", &well, true)])?;
    let asset = file.display().to_string();
    let run = "sh ${RELEASE_DIR}/work";
    let create = [
        "release", "create", "fleet", version, "--asset", &asset, "--run", run,
    ];
    cluster.tidegate(&create)?.ok()?;
    Ok(())
}

fn get(cluster: &Cluster, group: &str) -> anyhow::Result<Value> {
    cluster.tidegate(&["group", "get", group])?.json()
}

fn member<'a>(group: &'a Value, scope: &str) -> anyhow::Result<&'a Value> {
    let members = group["members"].as_array();
    let found = members.and_then(|all| all.iter().find(|one| text(one, "scope") == scope));
    found.with_context(|| format!("no member {scope}: {group}"))
}

fn members(group: &Value) -> Vec<(String, String)> {
    let all = group["members"].as_array().cloned().unwrap_or_default();
    let told = all.iter().map(|one| {
        (
            text(one, "scope").to_owned(),
            text(one, "status").to_owned(),
        )
    });
    told.collect()
}

/// What a command that waited came to: its exit status, and the group at its end.
fn ended(output: Output, status: i32) -> anyhow::Result<Value> {
    ensure!(
        output.status == Some(status),
        "want exit {status}: {output}"
    );
    serde_json::from_str(&output.stdout).with_context(|| format!("no JSON: {output}"))
}

fn runs(cluster: &Cluster, scope: &str, version: &str) -> anyhow::Result<()> {
    let view = cluster.tidegate(&["scope", "get", scope])?.json()?;
    ensure!(
        text(&view["active"], "version") == version,
        "{scope} does not run {version}: {view}"
    );
    Ok(())
}

/// Waits until the members of a group have these statuses, in its order.
fn stand(cluster: &Cluster, group: &str, wanted: &[&str]) -> anyhow::Result<Value> {
    poll::until(&format!("{wanted:?} of {group}"), ROLLOUT, || {
        let found = get(cluster, group)?;
        let seen = members(&found);
        let holds = seen.iter().map(|(_, status)| status).eq(wanted);
        poll::holds(holds, || found.to_string())?;
        Ok(found)
    })
}

#[test]
fn a_group_rolls_out_is_rolled_back_and_is_steered() {
    story(ONE, |cluster| {
        apply(cluster, &objects())?;
        for version in ["1", "2", "3"] {
            publish(cluster, version)?;
        }
        linear(cluster)?;
        waves(cluster)?;
        steering(cluster)?;
        names(cluster)?;
        wrong(cluster)
    });
}

/// One after another, to a good end.
fn linear(cluster: &Cluster) -> anyhow::Result<()> {
    let deploy = [
        "deploy",
        "fleet",
        "1",
        "--environment",
        "test",
        "--strategy",
        "swap",
        "--group",
        "first",
        "--rollout",
        "linear",
        "--interval",
        "1s",
        "--order",
        "name",
        "--gate",
        "healthy",
        "--wait",
        "--timeout",
        "3m",
    ];
    let output = cluster.tidegate(&deploy)?;
    // The progress of each member is told on the way.
    for scope in SCOPES {
        let told = output
            .stderr
            .lines()
            .any(|line| line.contains(scope) && line.contains("FINALIZED"));
        ensure!(told, "nothing of {scope}: {output}");
    }
    let group = ended(output, 0)?;
    ensure!(text(&group, "status") == "FINALIZED", "{group}");
    ensure!(text(&group, "outcome") == "succeeded", "{group}");
    let wanted: Vec<(String, String)> = SCOPES
        .iter()
        .map(|scope| ((*scope).to_owned(), "FINALIZED".to_owned()))
        .collect();
    ensure!(members(&group) == wanted, "{group}");
    let table = cluster
        .tidegate(&["group", "get", "first", "-o", "table"])?
        .ok()?;
    for part in [
        "status       FINALIZED (succeeded)",
        "6 finalized of 6 members",
        "linear, one every 1s, in order of name, gate healthy",
        "fleet-f",
    ] {
        ensure!(table.stdout.contains(part), "no {part:?}: {table}");
    }
    let listed = cluster.tidegate(&["group", "list"])?.json()?;
    ensure!(
        listed["groups"].as_array().map(Vec::len) == Some(1),
        "{listed}"
    );
    SCOPES
        .iter()
        .try_for_each(|scope| runs(cluster, scope, "1"))
}

/// In waves; one member fails, and the whole group returns.
fn waves(cluster: &Cluster) -> anyhow::Result<()> {
    let file = cluster.dir().join("waves.yaml");
    fs::write(
        &file,
        "kind: waves\nwaves:\n- {name: canary, count: 1, bake: 1s}\n\
         - {name: south, selector: scope.dimensions.region == \"south\"}\n\
         gate: healthy\norder: name\npinned: {first: [fleet-b]}\n\
         budget: {max_failures: 0, on_breach: rollback}\n",
    )?;
    let path = file.display().to_string();
    let deploy = [
        "deploy",
        "fleet",
        "2",
        "--selector",
        "application.name == \"fleet\"",
        "--strategy",
        "swap",
        "--group",
        "second",
        "--rollout",
        &path,
        "--wait",
        "--timeout",
        "3m",
    ];
    let group = ended(cluster.tidegate(&deploy)?, 3)?;
    ensure!(text(&group, "status") == "ROLLED_BACK", "{group}");
    ensure!(text(&group, "verb") == "rollback", "{group}");
    let order: Vec<String> = members(&group)
        .into_iter()
        .map(|(scope, _)| scope)
        .collect();
    ensure!(
        order
            == [
                "fleet-b", "fleet-d", "fleet-e", "fleet-f", "fleet-a", "fleet-c"
            ],
        "{order:?}"
    );
    // The first wave had been finalized: a return was made for it. The member that failed is back, and
    // those of the last wave never started.
    let canary = member(&group, "fleet-b")?;
    ensure!(text(canary, "status") == "FINALIZED", "{canary}");
    ensure!(text(canary, "wave") == "canary", "{canary}");
    ensure!(text(canary, "rollbackStatus") == "FINALIZED", "{canary}");
    let broken = member(&group, "fleet-e")?;
    ensure!(text(broken, "status") == "ROLLED_BACK", "{broken}");
    for scope in ["fleet-a", "fleet-c"] {
        let found = member(&group, scope)?;
        ensure!(text(found, "status") == "CANCELLED", "{found}");
    }
    for scope in ["fleet-d", "fleet-f"] {
        let found = member(&group, scope)?;
        let is_back = match text(found, "status") {
            "ROLLED_BACK" | "CANCELLED" => true,
            "FINALIZED" => text(found, "rollbackStatus") == "FINALIZED",
            _ => false,
        };
        ensure!(is_back, "{found}");
    }
    ensure!(number(&group["budget"], "failures") == 1, "{group}");
    SCOPES
        .iter()
        .try_for_each(|scope| runs(cluster, scope, "1"))
}

/// Verbs on the whole, and on one member.
fn steering(cluster: &Cluster) -> anyhow::Result<()> {
    let deploy = [
        "deploy",
        "fleet",
        "3",
        "--scope",
        "fleet-c,fleet-a,fleet-b",
        "--strategy",
        "stay",
        "--group",
        "third",
        "--rollout",
        "linear",
        "--interval",
        "1h",
        "--order",
        "listed",
    ];
    let made = cluster.tidegate(&deploy)?.json()?;
    ensure!(number(&made["counts"], "members") == 3, "{made}");
    stand(cluster, "third", &["RUNNING", "PENDING", "PENDING"])?;
    cluster.tidegate(&deploy)?.refused(1, &["third", "TG-"])?;
    // Not every member runs.
    cluster
        .tidegate(&["group", "cancel", "third"])?
        .refused(1, &["fleet-a", "fleet-b", "PENDING", "TG-1551"])?;
    let told = cluster
        .tidegate(&["group", "explain", "third", "-o", "table"])?
        .ok()?;
    for part in ["In the way: ", "fleet-a  PENDING", "rollout"] {
        ensure!(told.stdout.contains(part), "no {part:?}: {told}");
    }
    let paused = cluster
        .tidegate(&["group", "pause", "third", "--reason", "a look"])?
        .json()?;
    ensure!(
        text(&paused["group"]["paused"], "reason") == "a look",
        "{paused}"
    );
    cluster.tidegate(&["group", "resume", "third"])?.ok()?;
    let added = cluster
        .tidegate(&["group", "add", "third", "--scope", "fleet-f"])?
        .json()?;
    let last = added["members"].as_array().and_then(|all| all.last());
    ensure!(
        last.is_some_and(|one| text(one, "scope") == "fleet-f"),
        "{added}"
    );
    // One member alone.
    let alone = [
        "deployment",
        "rollback",
        "fleet-c",
        "--wait",
        "--timeout",
        "1m",
    ];
    ended(cluster.tidegate(&alone)?, 3)?;
    stand(
        cluster,
        "third",
        &["ROLLED_BACK", "PENDING", "PENDING", "PENDING"],
    )?;
    let back = ["group", "rollback", "third", "--wait", "--timeout", "2m"];
    let group = ended(cluster.tidegate(&back)?, 3)?;
    ensure!(text(&group, "status") == "ROLLED_BACK", "{group}");
    for scope in ["fleet-a", "fleet-b", "fleet-f"] {
        let found = member(&group, scope)?;
        ensure!(text(found, "status") == "CANCELLED", "{found}");
    }
    Ok(())
}

/// A group without a name, and lists.
fn names(cluster: &Cluster) -> anyhow::Result<()> {
    let deploy = [
        "deploy",
        "fleet",
        "3",
        "--scope",
        "fleet-a",
        "--strategy",
        "swap",
        "--rollout",
        "all_at_once",
        "--wait",
        "--timeout",
        "2m",
    ];
    let group = ended(cluster.tidegate(&deploy)?, 0)?;
    let called = text(&group["metadata"], "name").to_owned();
    let short = text(&group, "shortId");
    ensure!(called == format!("fleet-3-{short}"), "{group}");
    for reference in [called.as_str(), short, text(&group, "id")] {
        let found = get(cluster, reference)?;
        ensure!(found["id"] == group["id"], "{reference}: {found}");
    }
    runs(cluster, "fleet-a", "3")?;
    let deployment = text(member(&group, "fleet-a")?, "deployment");
    let alone = cluster
        .tidegate(&["deployment", "get", deployment])?
        .json()?;
    ensure!(text(&alone, "group") == called, "{alone}");
    let listed = cluster
        .tidegate(&["group", "list", "--limit", "3"])?
        .json()?;
    let names: Vec<&str> = listed["groups"]
        .as_array()
        .map(|all| {
            all.iter()
                .map(|one| text(&one["metadata"], "name"))
                .collect()
        })
        .unwrap_or_default();
    ensure!(names == [called.as_str(), "third", "second"], "{listed}");
    Ok(())
}

/// What is refused, with its place and a code.
fn wrong(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.tidegate(&["group", "get", "frist"])?.refused(
        1,
        &[
            "there is no group \"frist\"",
            "did you mean \"first\"?",
            "TG-1101",
        ],
    )?;
    let deploy = |arguments: &[&str]| {
        let mut all = vec!["deploy", "fleet", "3"];
        all.extend(arguments);
        cluster.tidegate(&all)
    };
    deploy(&["--environment", "empty"])?
        .refused(1, &["has no scope in environment \"empty\"", "TG-1570"])?;
    deploy(&["--selector", "scope.dimensions.region == \"west\""])?
        .refused(1, &["holds for none of the 6 scopes", "TG-1570"])?;
    deploy(&["--selector", "scope.dimension.region == \"south\""])?
        .refused(1, &["selector", "at character 6", "dimensions", "TG-1001"])?;
    deploy(&["--environment", "tset"])?.refused(
        1,
        &[
            "there is no environment \"tset\"",
            "did you mean environment \"test\"?",
        ],
    )?;
    deploy(&["--scope", "fleet-a", "--environment", "test"])?.refused(2, &["TG-1003"])?;
    let file = cluster.dir().join("bad.yaml");
    let path = file.display().to_string();
    for (rollout, parts) in [
        (
            "kind: linear\nintervall: 1m\n",
            &["bad.yaml:2:", "intervall", "TG-1002"][..],
        ),
        (
            "kind: waves\nwaves:\n- {name: a, count: 1, percent: 5}\n",
            &["bad.yaml:3:", "waves[0]", "TG-1002"],
        ),
        (
            "kind: waves\nwaves:\n- name: a\n  selector: scope.nam == \"x\"\n",
            &[
                "bad.yaml:4:13: waves[0].selector",
                "scope has no \"nam\"",
                "TG-1001",
            ],
        ),
    ] {
        fs::write(&file, rollout)?;
        deploy(&["--environment", "test", "--rollout", &path])?.refused(1, parts)?;
    }
    deploy(&["--environment", "test", "--interval", "1m"])?
        .refused(2, &["--interval", "takes none", "TG-1003"])?;
    let listed = cluster
        .tidegate(&["group", "list", "--unfinished"])?
        .json()?;
    ensure!(
        listed["groups"].as_array().is_none_or(Vec::is_empty),
        "something was made: {listed}"
    );
    Ok(())
}

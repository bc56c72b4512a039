//! The verbs of a group through a running cluster: share of the traffic, promotion, finalizing, pauses,
//! decisions. Each reaches the members whose status allows it and names the others; some are said to a
//! coordinator that does not lead.

use std::fs;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tidegate_e2e::story;
use tidegate_e2e::support::{ROLLOUT, apply, publish, scope, shop_at, status, weight};
use tidegate_harness::cluster::control::Person;
use tidegate_harness::cluster::{Output, number, text};
use tidegate_harness::{Cluster, Shape, poll};

const SEVERAL: Shape = Shape {
    coordinators: 3,
    agents: 1,
};

/// In the order of their names; the last one is added later.
const SCOPES: [&str; 4] = ["shop", "shop-b", "shop-c", "shop-d"];

/// Every one of these scopes waits for somebody's decision.
const APPROVAL: &str = "kind: policy\nname: eyes\nspec:\n  \
    selector: scope.name == \"shop\" || scope.name == \"shop-b\"\n  \
    approval: {required: 1, from: [\"user:ann\"]}\n";

fn group(cluster: &Cluster, name: &str) -> anyhow::Result<Value> {
    cluster.tidegate(&["group", "get", name])?.json()
}

fn revision(cluster: &Cluster, name: &str) -> anyhow::Result<String> {
    let found = group(cluster, name)?;
    // A number of 64 bits is a text in JSON.
    Ok(number(&found["metadata"], "revision").to_string())
}

fn members(group: &Value) -> Vec<(&str, &str)> {
    let all = group["members"].as_array().into_iter().flatten();
    all.map(|one| (text(one, "scope"), text(one, "status")))
        .collect()
}

/// Waits until the members of a group have these statuses, in its order.
fn stand(cluster: &Cluster, name: &str, wanted: &[&str]) -> anyhow::Result<Value> {
    poll::until(&format!("{wanted:?} of {name}"), ROLLOUT, || {
        let found = group(cluster, name)?;
        let seen: Vec<&str> = members(&found).into_iter().map(|(_, s)| s).collect();
        poll::holds(seen == wanted, || found.to_string())?;
        Ok(found)
    })
}

/// The present deployment of a scope in a group.
fn deployment(cluster: &Cluster, name: &str, scope: &str) -> anyhow::Result<String> {
    let found = group(cluster, name)?;
    let all = found["members"].as_array();
    let one = all.and_then(|all| all.iter().find(|one| text(one, "scope") == scope));
    let one = one.with_context(|| format!("no member {scope}: {found}"))?;
    Ok(text(one, "deployment").to_owned())
}

/// Whom a verb reached, and that it named the others with the word that says why.
fn reached(output: Output, done: &[&str], left: &[(&str, &str)]) -> anyhow::Result<()> {
    let answer = output.json()?;
    let list = |key: &str| answer[key].as_array().cloned().unwrap_or_default();
    let seen = list("done");
    let seen: Vec<&str> = seen.iter().map(|one| text(one, "scope")).collect();
    ensure!(seen == done, "want {done:?}: {answer}");
    let others = list("left");
    let names: Vec<&str> = others.iter().map(|one| text(one, "scope")).collect();
    let wanted: Vec<&str> = left.iter().map(|(scope, _)| *scope).collect();
    ensure!(names == wanted, "want {wanted:?} left: {answer}");
    for (one, (scope, why)) in others.iter().zip(left) {
        ensure!(text(one, "why").contains(why), "{scope}, {why}: {answer}");
    }
    Ok(())
}

#[test]
fn verbs_reach_the_members_that_take_them_and_name_the_others() {
    story(SEVERAL, |cluster| {
        prepare(cluster)?;
        // Whoever leads, somebody else takes the verbs.
        let follower = (cluster.leader()? + 1) % 3;
        let follower = cluster.person_at(follower)?;
        traffic(cluster, &follower)?;
        growth(cluster, &follower)?;
        promotion(cluster)?;
        finalizing(cluster, &follower)?;
        approval(cluster, &follower)?;
        denial(cluster)
    });
}

/// Four scopes at version 1 but for the last one, which has never had any.
fn prepare(cluster: &Cluster) -> anyhow::Result<()> {
    let mut ports = Vec::new();
    while ports.len() < SCOPES.len() {
        let port = cluster.scope_port()?;
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    shop_at(cluster, ports[0])?;
    let more = SCOPES.iter().zip(&ports).skip(1);
    let more: String = more.map(|(name, port)| scope(name, *port)).collect();
    apply(cluster, more.trim_start_matches("---\n"))?;
    for version in ["1.0.0", "2.0.0", "3.0.0"] {
        publish(cluster, version)?;
    }
    let deploy = [
        "deploy",
        "shop",
        "1.0.0",
        "--scope",
        "shop,shop-b,shop-c",
        "--strategy",
        "at-once",
        "--group",
        "first",
        "--wait",
        "--timeout",
        "3m",
    ];
    let group = cluster.tidegate(&deploy)?.json()?;
    ensure!(text(&group, "outcome") == "succeeded", "{group}");
    let waves = cluster.dir().join("waves.yaml");
    let early = "kind: waves\nwaves: [{name: early, count: 2}]\norder: name\n";
    fs::write(&waves, early)?;
    let waves = waves.display().to_string();
    let deploy = [
        "deploy",
        "shop",
        "2.0.0",
        "--scope",
        "shop,shop-b,shop-c",
        "--strategy",
        "by-hand",
        "--group",
        "second",
        "--rollout",
        &waves,
    ];
    cluster.tidegate(&deploy)?.ok()?;
    stand(cluster, "second", &["RUNNING", "RUNNING", "PENDING"]).map(drop)
}

/// A share for all that run, through a coordinator that does not lead; the data planes hold it.
fn traffic(cluster: &Cluster, follower: &Person) -> anyhow::Result<()> {
    for scope in ["shop", "shop-b"] {
        weight(cluster, &deployment(cluster, "second", scope)?, 2_000)?;
    }
    let set = ["group", "traffic", "second", "35", "--reason", "half of it"];
    let waits = [("shop-c", "PENDING")];
    reached(follower.tidegate(&set)?, &["shop", "shop-b"], &waits)?;
    for scope in ["shop", "shop-b"] {
        let id = deployment(cluster, "second", scope)?;
        let found = weight(cluster, &id, 3_500)?;
        ensure!(number(&found["traffic"], "actual") == 3_500, "{found}");
        ensure!(found["paused"].is_object(), "{found}");
    }
    let told = follower.tidegate(&["group", "traffic", "second", "20", "-o", "table"])?;
    let told = told.ok()?;
    for part in ["2 of 3 members", "left as it is: shop-c  ", "PENDING"] {
        ensure!(told.stdout.contains(part), "no {part:?}: {told}");
    }
    cluster
        .tidegate(&["group", "traffic", "second", "101"])?
        .refused(2, &["\"101\" is not a share of traffic", "TG-1003"])?;
    // On with the first step above it; whoever is not paused has nothing to change.
    let resume = ["group", "resume", "second"];
    reached(follower.tidegate(&resume)?, &SCOPES[..3], &[])?;
    for scope in ["shop", "shop-b"] {
        weight(cluster, &deployment(cluster, "second", scope)?, 6_000)?;
    }
    Ok(())
}

/// A scope more, for whom has seen the group as it is; a pause of everything that has not ended.
fn growth(cluster: &Cluster, follower: &Person) -> anyhow::Result<()> {
    let add = |revision: &str| {
        follower.tidegate(&[
            "group",
            "add",
            "second",
            "--scope",
            "shop-d",
            "--revision",
            revision,
        ])
    };
    add("1")?.refused(1, &["changed meanwhile", "not 1", "TG-1104"])?;
    let grown = add(&revision(cluster, "second")?)?.json()?;
    let wanted = [("shop-d", "PENDING")];
    ensure!(members(&grown)[3..] == wanted, "{grown}");
    let pause = ["group", "pause", "second", "--reason", "a look"];
    reached(cluster.tidegate(&pause)?, &SCOPES, &[])?;
    let found = group(cluster, "second")?;
    ensure!(text(&found["paused"], "reason") == "a look", "{found}");
    reached(
        cluster.tidegate(&["group", "resume", "second"])?,
        &SCOPES,
        &[],
    )?;
    cluster.tidegate(&["group", "cancel", "second"])?.refused(
        1,
        &[
            "2 of 4 are in the way\n",
            "--> shop-c: is PENDING\n",
            "--> shop-d: is PENDING\n",
            "TG-1551",
        ],
    )
}

/// To the last step, one at a time.
fn promotion(cluster: &Cluster) -> anyhow::Result<()> {
    let waits = [("shop-c", "PENDING"), ("shop-d", "PENDING")];
    let promote = ["group", "promote", "second"];
    reached(cluster.tidegate(&promote)?, &["shop", "shop-b"], &waits)?;
    for scope in ["shop", "shop-b"] {
        weight(cluster, &deployment(cluster, "second", scope)?, 10_000)?;
    }
    Ok(())
}

/// The end of the bake, for the first wave and then, all steps at once, for the last one.
fn finalizing(cluster: &Cluster, follower: &Person) -> anyhow::Result<()> {
    let waits = [("shop-c", "PENDING"), ("shop-d", "PENDING")];
    finalized(
        |finalize| follower.tidegate(finalize),
        &["shop", "shop-b"],
        &waits,
    )?;
    let last = ["FINALIZED", "FINALIZED", "RUNNING", "RUNNING"];
    stand(cluster, "second", &last)?;
    // The last one is the first release of its scope, which has all the traffic from the start.
    let over = [("shop", "FINALIZED"), ("shop-b", "FINALIZED")];
    let ids = ["shop-c", "shop-d"].map(|scope| deployment(cluster, "second", scope));
    let promote = cluster
        .tidegate(&["group", "promote", "second", "--full"])?
        .json()?;
    let left = promote["left"].as_array().cloned().unwrap_or_default();
    ensure!(left.len() >= over.len(), "{promote}");
    for (one, (scope, why)) in left.iter().zip(over) {
        ensure!(text(one, "scope") == scope, "{promote}");
        ensure!(text(one, "why").contains(why), "{promote}");
    }
    for id in ids {
        weight(cluster, &id?, 10_000)?;
    }
    finalized(
        |finalize| cluster.tidegate(finalize),
        &["shop-c", "shop-d"],
        &over,
    )?;
    let watched = cluster.tidegate(&["group", "watch", "second", "--timeout", "2m"])?;
    ensure!(watched.status == Some(0), "{watched}");
    let ended = group(cluster, "second")?;
    ensure!(text(&ended, "outcome") == "succeeded", "{ended}");
    for verb in ["promote", "finalize", "pause"] {
        cluster
            .tidegate(&["group", verb, "second"])?
            .refused(1, &["second", "FINALIZED since", "TG-1550"])?;
    }
    Ok(())
}

/// Ends the bake of these members as soon as each has come so far, and names the others each time.
fn finalized(
    tidegate: impl Fn(&[&str]) -> anyhow::Result<Output>,
    wanted: &[&str],
    left: &[(&str, &str)],
) -> anyhow::Result<()> {
    let finalize = ["group", "finalize", "second", "--reason", "looks well"];
    let mut done: Vec<String> = Vec::new();
    poll::until(&format!("{wanted:?} finalize"), ROLLOUT, || {
        let answer = tidegate(&finalize)?.json()?;
        let list = |key: &str| answer[key].as_array().cloned().unwrap_or_default();
        for (scope, why) in left {
            let is_named =
                |one: &Value| text(one, "scope") == *scope && text(one, "why").contains(why);
            ensure!(
                list("left").iter().any(is_named),
                "{scope}, {why}: {answer}"
            );
        }
        done.extend(list("done").iter().map(|one| text(one, "scope").to_owned()));
        done.sort();
        poll::holds(done == wanted, || answer.to_string())
    })
}

/// One decision for those that wait for it, through a coordinator that does not lead.
fn approval(cluster: &Cluster, follower: &Person) -> anyhow::Result<()> {
    apply(cluster, APPROVAL)?;
    third(cluster, "third")?;
    let approve = |revision: &str| {
        let all = [
            "group",
            "approve",
            "third",
            "--reason",
            "seen",
            "--revision",
            revision,
        ];
        follower.tidegate(&all)
    };
    approve("1")?.refused(1, &["changed meanwhile", "TG-1104"])?;
    let runs = [("shop-c", "is RUNNING and waits for no approval")];
    reached(
        approve(&revision(cluster, "third")?)?,
        &["shop", "shop-b"],
        &runs,
    )?;
    stand(cluster, "third", &["RUNNING"; 3])?;
    cluster.tidegate(&["group", "deny", "third"])?.refused(
        1,
        &[
            "no member waits for approval\n",
            "--> shop: is RUNNING",
            "--> shop-b: is RUNNING",
            "--> shop-c: is RUNNING",
            "TG-1210",
        ],
    )?;
    let back = ["group", "rollback", "third", "--wait", "--timeout", "2m"];
    let back = cluster.tidegate(&back)?;
    ensure!(back.status == Some(3), "{back}");
    Ok(())
}

/// A group of which two members wait for approval and the other one runs.
fn third(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let deploy = [
        "deploy",
        "shop",
        "3.0.0",
        "--scope",
        "shop,shop-b,shop-c",
        "--strategy",
        "by-hand",
        "--group",
        name,
        "--rollout",
        "all_at_once",
        "--order",
        "name",
    ];
    cluster.tidegate(&deploy)?.ok()?;
    let wanted = ["CREATING_APPROVAL", "CREATING_APPROVAL", "RUNNING"];
    stand(cluster, name, &wanted).map(drop)
}

/// A denial is final for those that waited; the others go on.
fn denial(cluster: &Cluster) -> anyhow::Result<()> {
    third(cluster, "fourth")?;
    let deny = ["group", "deny", "fourth", "--reason", "not today"];
    let runs = [("shop-c", "is RUNNING and waits for no approval")];
    reached(cluster.tidegate(&deny)?, &["shop", "shop-b"], &runs)?;
    let denied = "CREATING_APPROVAL_DENIED";
    stand(cluster, "fourth", &[denied, denied, "RUNNING"])?;
    cluster.tidegate(&["group", "pause", "fourth"])?.ok()?;
    cluster.tidegate(&["group", "resume", "fourth"])?.ok()?;
    cluster.tidegate(&["group", "cancel", "fourth"])?.refused(
        1,
        &[
            "--> shop: is CREATING_APPROVAL_DENIED",
            "--> shop-b: is CREATING_APPROVAL_DENIED",
            "TG-1551",
        ],
    )?;
    let id = deployment(cluster, "fourth", "shop-c")?;
    cluster.tidegate(&["deployment", "cancel", &id])?.ok()?;
    status(cluster, &id, "ROLLED_BACK")?;
    let ended = poll::until("the end of the group", ROLLOUT, || {
        let found = group(cluster, "fourth")?;
        poll::holds(!text(&found, "outcome").is_empty(), || found.to_string())?;
        Ok(found)
    })?;
    ensure!(text(&ended, "outcome") == "failed", "{ended}");
    Ok(())
}

//! People with certificates of their own: who may do what, approvals by two of them, a role that is
//! taken away, and the audit log that tells of it.

use std::fs;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tidegate_e2e::story;
use tidegate_e2e::support::{apply, publish, shop};
use tidegate_harness::cluster::{Output, PATIENCE, text};
use tidegate_harness::{Cluster, Shape, poll};

const SMALL: Shape = Shape {
    coordinators: 1,
    agents: 1,
};

/// Somebody who joins by a token with these flags and logs in with a certificate of its own.
fn join(cluster: &Cluster, who: &str, roles: &[&str]) -> anyhow::Result<()> {
    let mut flags = vec!["user", "--name", who];
    for role in roles {
        flags.extend(["--role", role]);
    }
    let token = cluster.token(&flags)?;
    let server = cluster.listeners(0).enroll;
    let arguments = ["login", "--name", who, "--server", &server].map(str::to_owned);
    let environment = [
        ("TIDEGATE_TOKEN", token),
        ("TIDEGATE_CONFIG_DIR", cluster.dir().display().to_string()),
    ];
    cluster.finish("tidegate", &arguments, &environment)?.ok()?;
    Ok(())
}

/// Runs `tidegate` as one of them.
fn run_as(cluster: &Cluster, who: &str, arguments: &[&str]) -> anyhow::Result<Output> {
    let environment = [
        ("TIDEGATE_CONTEXT", who.to_owned()),
        ("TIDEGATE_CONFIG_DIR", cluster.dir().display().to_string()),
        ("TIDEGATE_OUTPUT", "json".to_owned()),
    ];
    let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
    cluster.finish("tidegate", &arguments, &environment)
}

const APPROVAL: &str = "\
kind: team
name: sre
spec: {members: [cho]}
---
kind: policy
name: two-people
spec:
  selector: scope.name == \"shop\"
  approval:
    required: 2
    from: [role:approver, team:sre]
    not_requester: true
";

fn deployment(cluster: &Cluster, id: &str) -> anyhow::Result<Value> {
    cluster.tidegate(&["deployment", "get", id])?.json()
}

/// Waits until a deployment is in one of these statuses.
fn reaches(cluster: &Cluster, id: &str, wanted: &[&str]) -> anyhow::Result<()> {
    poll::until(&wanted.join(" or "), PATIENCE, || {
        let found = deployment(cluster, id)?;
        poll::holds(wanted.contains(&text(&found, "status")), || {
            found.to_string()
        })
    })
}

fn deploy_as(cluster: &Cluster, who: &str, version: &str) -> anyhow::Result<Output> {
    let arguments = [
        "deploy",
        "shop",
        version,
        "--scope",
        "shop",
        "--strategy",
        "at-once",
    ];
    run_as(cluster, who, &arguments)
}

#[test]
fn two_people_approve_and_a_role_that_is_lost_takes_the_grant_back() {
    story(SMALL, |cluster| {
        shop(cluster)?;
        publish(cluster, "1.0.0")?;
        join(cluster, "dia", &["deployer"])?;
        join(cluster, "bob", &["approver"])?;
        join(cluster, "cho", &[])?;
        join(cluster, "eve", &[])?;
        apply(cluster, APPROVAL)?;

        // A viewer cannot deploy, and is told whom to ask.
        let refused = deploy_as(cluster, "eve", "1.0.0")?;
        refused.refused(
            1,
            &[
                "TG-1580",
                "user \"eve\" needs the role deployer",
                "ask an administrator: ",
                "ann",
            ],
        )?;
        let made = deploy_as(cluster, "dia", "1.0.0")?.json()?;
        let id = text(&made, "id").to_owned();
        ensure!(!id.is_empty(), "{made}");
        reaches(cluster, &id, &["CREATING_APPROVAL"])?;

        // Neither who asked for it nor who is not asked decides.
        let grant = ["approval", "grant", id.as_str()];
        for who in ["dia", "eve"] {
            let refused = run_as(cluster, who, &grant)?;
            let asked = "policy two-people asks 2 of role:approver or team:sre";
            refused.refused(
                1,
                &["TG-1580", &format!("user \"{who}\" may not decide"), asked],
            )?;
        }
        run_as(cluster, "bob", &grant)?.ok()?;
        // Bob is approver no more, and his grant is gone.
        cluster
            .tidegate(&["user", "update", "bob", "--role", "viewer"])?
            .ok()?;
        poll::until("bob's grant to be gone", PATIENCE, || {
            let found = deployment(cluster, &id)?;
            let left = found["decisions"].as_array().map_or(0, Vec::len);
            poll::holds(left == 0, || found.to_string())
        })?;
        run_as(cluster, "cho", &grant)?.ok()?;
        let refused = run_as(cluster, "bob", &grant)?;
        refused.refused(1, &["TG-1580", "user \"bob\" may not decide"])?;
        ensure!(text(&deployment(cluster, &id)?, "status") == "CREATING_APPROVAL");
        cluster
            .tidegate(&["user", "update", "bob", "--role", "approver"])?
            .ok()?;
        run_as(cluster, "bob", &grant)?.ok()?;
        reaches(cluster, &id, &["FINALIZED"])?;
        told_in_the_log(cluster, &id)
    });
}

/// The log says who asked, who approved, and whose grant was taken back.
fn told_in_the_log(cluster: &Cluster, id: &str) -> anyhow::Result<()> {
    let list = |arguments: &[&str]| -> anyhow::Result<Vec<Value>> {
        let all = [&["audit", "list", "--object", id], arguments].concat();
        let found = cluster.tidegate(&all)?.json()?;
        Ok(found["events"].as_array().cloned().unwrap_or_default())
    };
    let granted = list(&["--kind", "deployment_approval_granted"])?;
    let who: Vec<&str> = granted.iter().map(|event| text(event, "actor")).collect();
    ensure!(who == ["user:bob", "user:cho", "user:bob"], "{granted:?}");
    let withdrawn = list(&["--kind", "deployment_approval_withdrawn"])?;
    ensure!(withdrawn.len() == 1, "{withdrawn:?}");
    ensure!(
        text(&withdrawn[0], "message").contains("user:bob"),
        "{withdrawn:?}"
    );
    let ended = list(&["--kind", "deployment_finalized"])?;
    let details = text(ended.last().context("no end")?, "details").to_owned();
    ensure!(
        details.contains("\"requested_by\":\"user:dia\""),
        "{details}"
    );
    ensure!(
        details.contains("\"approved_by\":\"user:cho, user:bob\""),
        "{details}"
    );
    let by_cho = list(&["--actor", "cho"])?;
    ensure!(by_cho.len() == 1, "{by_cho:?}");
    Ok(())
}

#[test]
fn a_role_holds_where_its_selector_says_and_the_last_admin_stays() {
    story(SMALL, |cluster| {
        shop(cluster)?;
        publish(cluster, "1.0.0")?;
        join(cluster, "dia", &[])?;
        let binding = "kind: team\nname: shop\nspec: {members: [dia]}\n---\nkind: role_binding\n\
            name: shop-deployers\nspec: {role: deployer, teams: [shop], \
            selector: 'application.name == \"shop\" && environment.name != \"test\"'}\n";
        apply(cluster, binding)?;
        let refused = deploy_as(cluster, "dia", "1.0.0")?;
        refused.refused(
            1,
            &["TG-1580", "needs the role deployer for scope \"shop\""],
        )?;
        let wrong = [
            "role",
            "update",
            "shop-deployers",
            "--selector",
            "scope.nam == \"x\"",
        ];
        cluster
            .tidegate(&wrong)?
            .refused(1, &["TG-1001", "selector"])?;
        let wider = [
            "role",
            "update",
            "shop-deployers",
            "--selector",
            "application.name == \"shop\"",
        ];
        cluster.tidegate(&wider)?.ok()?;
        deploy_as(cluster, "dia", "1.0.0")?.ok()?;
        run_as(cluster, "dia", &["freeze", "--reason", "x", "--for", "1h"])?
            .refused(1, &["TG-1580", "needs the role operator"])?;
        run_as(
            cluster,
            "dia",
            &["user", "update", "dia", "--role", "admin"],
        )?
        .refused(1, &["TG-1580", "needs the role admin"])?;
        run_as(
            cluster,
            "dia",
            &["token", "create", "user", "--name", "mallory"],
        )?
        .refused(1, &["TG-1580"])?;

        let me = run_as(cluster, "dia", &["whoami"])?.json()?;
        ensure!(
            text(&me, "name") == "dia" && text(&me, "coordinator") == "c1",
            "{me}"
        );
        ensure!(me["teams"] == serde_json::json!(["shop"]), "{me}");
        let grants = me["grants"].as_array().cloned().unwrap_or_default();
        let told: Vec<(&str, &str)> = grants
            .iter()
            .map(|g| (text(g, "role"), text(g, "via")))
            .collect();
        let wanted = [
            ("viewer", "own"),
            ("deployer", "team shop by binding shop-deployers"),
        ];
        ensure!(told == wanted, "{me}");
        ensure!(!text(&me, "certificateNotAfterMs").is_empty(), "{me}");

        // There are two administrators, ann and the first one; one of them stays.
        cluster.tidegate(&["user", "delete", "admin"])?.ok()?;
        for verb in [
            &["user", "delete", "ann"][..],
            &["user", "update", "ann", "--role", "viewer"],
        ] {
            cluster
                .tidegate(verb)?
                .refused(1, &["TG-1581", "ann would not be administrator"])?;
        }
        // Who is taken out is nobody at once.
        cluster.tidegate(&["user", "delete", "dia"])?.ok()?;
        poll::until("dia to be nobody", PATIENCE, || {
            let asked = run_as(cluster, "dia", &["whoami"])?;
            poll::holds(asked.refused(1, &["TG-1309"]).is_ok(), || asked.to_string())
        })
    });
}

#[test]
fn an_exported_log_is_verified_and_what_was_done_to_it_is_named() {
    story(SMALL, |cluster| {
        for tier in ["1", "2", "3"] {
            let name = format!("e{tier}");
            cluster
                .tidegate(&["environment", "create", &name, "--tier", tier])?
                .ok()?;
        }
        let file = cluster.dir().join("audit.jsonl");
        let path = file.display().to_string();
        cluster
            .tidegate(&["audit", "export", "--to", &path])?
            .ok()?;
        let verify = || cluster.tidegate(&["audit", "verify", &path]);
        let found = verify()?.json()?;
        let whole = fs::read_to_string(&file)?;
        let lines: Vec<&str> = whole.lines().collect();
        ensure!(found["events"] == lines.len() - 2, "{found}");
        let own = cluster.tidegate(&["audit", "verify"])?.json()?;
        ensure!(own["last_hash"] == found["last_hash"], "{own} {found}");

        let tamper = |change: &dyn Fn(&mut Vec<String>)| -> anyhow::Result<Output> {
            let mut changed: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
            change(&mut changed);
            fs::write(&file, changed.join("\n") + "\n")?;
            verify()
        };
        let flipped = tamper(&|lines| {
            let mut bytes = lines[3].clone().into_bytes();
            let place = bytes.len() / 2;
            bytes[place] ^= 1;
            lines[3] = String::from_utf8_lossy(&bytes).into_owned();
        })?;
        flipped.refused(1, &["TG-1582", "line 4", "was changed"])?;
        tamper(&|lines| drop(lines.remove(3)))?.refused(1, &["TG-1582", "before line 4"])?;
        tamper(&|lines| lines.swap(2, 3))?
            .refused(1, &["TG-1582", "line 3", "not at its place"])?;
        tamper(&|lines| lines.push(lines[3].clone()))?.refused(1, &["TG-1582", "was appended"])?;
        tamper(&|lines| drop(lines.pop()))?.refused(1, &["TG-1583", "cut off"])?;
        tamper(&Vec::clear)?.refused(1, &["TG-1583"])?;
        // A disk that was full, a copy that was broken off: in the middle of a line.
        let start = whole.len() - lines[lines.len() - 1].len() / 2;
        fs::write(&file, &whole.as_bytes()[..start])?;
        let within = format!("cut off within line {}", lines.len());
        verify()?.refused(1, &["TG-1583", &within])?;

        // Without a cluster, and from a position on.
        fs::write(&file, &whole)?;
        let offline = ["audit", "verify", path.as_str()].map(str::to_owned);
        let nowhere = [("TIDEGATE_CONFIG_DIR", "/nowhere".to_owned())];
        let found = cluster.finish("tidegate", &offline, &nowhere)?.ok()?;
        ensure!(found.stdout.contains("is sound"), "{found}");
        let second: Value = serde_json::from_str(lines[2])?;
        let after = format!("{}.{}", second["index"], second["ordinal"]);
        cluster
            .tidegate(&["audit", "export", "--after", &after, "--to", &path])?
            .ok()?;
        let part = verify()?.json()?;
        ensure!(part["previous_hash"] == second["hash"], "{part} {second}");
        Ok(())
    });
}

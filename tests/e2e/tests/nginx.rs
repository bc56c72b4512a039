//! Debian's nginx as a release: a template and a small script in an archive, the program on the
//! host. Published by steps of traffic, taken back, and its parameters with it.

use std::path::Path;

use anyhow::ensure;
use tidegate_e2e::support::{apply, ends, weight};
use tidegate_e2e::{answers, story};
use tidegate_harness::cluster::{PATIENCE, text};
use tidegate_harness::load::Load;
use tidegate_harness::{Cluster, Shape, archive};

const NGINX: &str = "/usr/sbin/nginx";

/// Everything that nginx writes goes into the instance's folder.
const TEMPLATE: &str = "\
pid @DIR@/nginx.pid;
error_log stderr warn;
events {}
http {
  access_log off;
  client_body_temp_path @DIR@/body;
  proxy_temp_path @DIR@/proxy;
  fastcgi_temp_path @DIR@/fastcgi;
  uwsgi_temp_path @DIR@/uwsgi;
  scgi_temp_path @DIR@/scgi;
  server {
    listen @ADDRESS@:@PORT@;
    default_type text/plain;
    add_header x-demo-version @VERSION@;
    location / { return 200 'nginx @VERSION@ says @GREETING@\\n'; }
  }
}
";

const START: &str = "\
#!/bin/sh
set -eu
conf=\"$TIDEGATE_INSTANCE_DIR/nginx.conf\"
sed -e \"s|@PORT@|$PORT|g\" -e \"s|@ADDRESS@|$TIDEGATE_ADDRESS|g\" \\
    -e \"s|@DIR@|$TIDEGATE_INSTANCE_DIR|g\" -e \"s|@GREETING@|$GREETING|g\" \\
    \"$TIDEGATE_RELEASE_DIR/nginx.conf.in\" >\"$conf\"
exec /usr/sbin/nginx -e stderr -p \"$TIDEGATE_INSTANCE_DIR\" -c \"$conf\" -g 'daemon off;'
";

fn publish(cluster: &Cluster, version: &str) -> anyhow::Result<()> {
    let file = cluster.dir().join(format!("web-{version}.tar.gz"));
    let template = TEMPLATE.replace("@VERSION@", version);
    let files = [
        ("nginx.conf.in", template.as_str(), false),
        ("start.sh", START, true),
    ];
    archive::write(&file, &files)?;
    let asset = file.display().to_string();
    let made = cluster.tidegate(&[
        "release",
        "create",
        "web",
        version,
        "--asset",
        &asset,
        "--run",
        "./start.sh",
    ])?;
    made.ok()?;
    Ok(())
}

fn greeting(cluster: &Cluster, value: &str) -> anyhow::Result<()> {
    let manifest = format!(
        "kind: parameter\nname: greeting\nspec:\n  variable: GREETING\n  value: {value}\n  \
         target: {{application: web}}\n"
    );
    apply(cluster, &manifest)
}

#[test]
fn nginx_is_published_by_steps_and_comes_back_with_its_parameters() {
    let shape = Shape {
        coordinators: 1,
        agents: 2,
    };
    assert!(
        Path::new(NGINX).is_file(),
        "{NGINX} is missing: apt-get install -y --no-install-recommends nginx-light"
    );
    story(shape, |cluster| {
        let port = cluster.scope_port()?;
        let objects = format!(
            "kind: application\nname: web\nspec: {{}}\n---\n\
             kind: environment\nname: test\nspec: {{tier: 1}}\n---\n\
             kind: strategy\nname: steps\nspec:\n  traffic: {{steps: [{{percent: 30, hold: 2s}}, \
             {{percent: 100, hold: 0s}}]}}\n  bake: 1s\n  drain: 1s\n---\n\
             kind: scope\nname: web\nspec:\n  application: web\n  environment: test\n  port: {port}\n  \
             health_check: {{http: {{path: /}}, interval: 200ms, healthy_threshold: 1}}\n"
        );
        apply(cluster, &objects)?;
        greeting(cluster, "hello")?;
        publish(cluster, "1.22.0")?;
        let deploy = |version: &str| -> anyhow::Result<String> {
            let arguments = [
                "deploy",
                "web",
                version,
                "--scope",
                "web",
                "--strategy",
                "steps",
            ];
            Ok(text(&cluster.tidegate(&arguments)?.json()?, "id").to_owned())
        };
        ends(cluster, &deploy("1.22.0")?, "FINALIZED")?;
        let both = [0, 1].map(|agent| cluster.proxy(agent, port));
        for at in both {
            answers(at, "nginx 1.22.0 says hello")?;
        }

        greeting(cluster, "goodbye")?;
        publish(cluster, "1.22.1")?;
        let load = Load::start(&both);
        let rollout = deploy("1.22.1")?;
        weight(cluster, &rollout, 3_000)?;
        load.wait_for("1.22.0", 20, PATIENCE)?;
        load.wait_for("1.22.1", 5, PATIENCE)?;
        ends(cluster, &rollout, "FINALIZED")?;
        for at in both {
            answers(at, "nginx 1.22.1 says goodbye")?;
        }

        let back = cluster.tidegate(&["rollback", "web", "--wait", "--timeout", "1m"])?;
        let back = back.json()?;
        ensure!(text(&back, "outcome") == "fast_rolled_back", "{back}");
        for at in both {
            answers(at, "nginx 1.22.0 says hello")?;
        }
        load.clean("while nginx came and went")
    });
}

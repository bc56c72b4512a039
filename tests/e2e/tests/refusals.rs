//! Wrong input of every kind: one clear line with a stable code, and nothing is changed.

use anyhow::ensure;
use tidegate_e2e::{python_release, reaches, site, story};
use tidegate_harness::Shape;

#[test]
fn wrong_input_is_refused_by_name() {
    let shape = Shape {
        coordinators: 1,
        agents: 1,
    };
    story(shape, |cluster| {
        site(cluster)?;
        let file = cluster.dir().join("wrong.yaml");
        let path = file.display().to_string();
        std::fs::write(
            &file,
            "kind: application\nname: good\nspec: {}\n---\nkind: scope\nname: wrong\nspec:\n  \
             application: site\n  environment: test\n  port: 8080\n  instances_per_agnet: 2\n",
        )?;
        let output = cluster.tidegate(&["apply", "-f", &path])?;
        output.refused(1, &["wrong.yaml:11:3", "instances_per_agnet", "TG-"])?;
        // Not half of it either.
        let output = cluster.tidegate(&["application", "get", "good"])?;
        output.refused(1, &["TG-1101"])?;

        let output = cluster.tidegate(&["deploy", "site", "9.9.9", "--scope", "site"])?;
        output.refused(1, &["9.9.9", "TG-1101"])?;

        python_release(cluster, "1.0.0")?;
        let deploy = [
            "deploy", "site", "1.0.0", "--scope", "site", "--set", "bake=10m",
        ];
        cluster.tidegate(&deploy)?.ok()?;
        reaches(cluster, "RUNNING")?;
        let output = cluster.tidegate(&deploy)?;
        output.refused(1, &["TG-1201", "1.0.0", "ann"])?;

        // A person whom another cluster knows is a stranger here.
        let environment = [("TIDEGATE_OUTPUT", "json".to_owned())];
        let arguments = [
            "login",
            "--token",
            "tg1_nonsense",
            "--server",
            "127.0.0.1:1",
        ];
        let output = cluster.finish("tidegate", &arguments.map(str::to_owned), &environment)?;
        ensure!(output.stderr.contains("TG-1306"), "{output}");
        Ok(())
    });
}

//! Expressions as people write them, their mistakes with their places, and texts without sense.

use super::*;
use proptest::prelude::*;
use tidegate_shared::time::Timestamp;

fn labels(pairs: &[(&str, &str)]) -> facts::Labels {
    let pairs = pairs.iter();
    pairs
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn shop() -> Facts {
    Facts {
        application: Some(ApplicationFacts {
            name: "shop".to_owned(),
            labels: labels(&[("team", "web")]),
        }),
        release: Some(ReleaseFacts {
            name: "2.0.0".to_owned(),
            version: "2.0.0".to_owned(),
            labels: labels(&[("coverage", "83.5"), ("hotfix", "true")]),
            status: "ready".to_owned(),
            ..ReleaseFacts::default()
        }),
        scope: Some(ScopeFacts {
            name: "web".to_owned(),
            labels: labels(&[("example.com/tier", "gold")]),
            dimensions: labels(&[("region", "eu")]),
            instances_per_agent: 2,
            ..ScopeFacts::default()
        }),
        environment: Some(EnvironmentFacts {
            name: "production".to_owned(),
            tier: 3,
            ..EnvironmentFacts::default()
        }),
        user: Some(UserFacts {
            name: "ann".to_owned(),
            teams: vec!["sre".to_owned()],
            roles: vec!["deployer".to_owned()],
        }),
        strategy: Some(StrategyFacts {
            kind: "all_in".to_owned(),
            steps: vec![100.0],
            rollback_rules: 0,
            bake: tidegate_shared::time::Span::from_mins(5),
            ..StrategyFacts::default()
        }),
        // A Wednesday.
        now: Some(Timestamp::from_millis(1_780_477_200_000)),
    }
}

fn holds(text: &str) -> Result<bool, String> {
    let compiled = Expression::compile(text, Subject::Creation);
    compiled
        .map_err(|mistake| format!("{mistake:?}"))?
        .holds(&shop())
}

#[test]
fn expressions_as_people_write_them() {
    for (text, wanted) in [
        ("", true),
        ("application.name == \"shop\"", true),
        (
            "environment.name=='production' && scope.name == \"web\"",
            true,
        ),
        (
            "environment.name == \"production\" && scope.name == \"api\"",
            false,
        ),
        ("release.labels.coverage >= 80", true),
        ("80.5 > release.labels.coverage", false),
        ("release.labels.hotfix == \"true\"", true),
        // Not set: the empty text.
        ("release.labels.missing == \"\"", true),
        ("scope.labels.sensitivity == \"high\"", false),
        (
            "has(release.labels.coverage) && !has(release.labels.missing)",
            true,
        ),
        (
            "scope.labels[\"example.com/tier\"] in [\"gold\", \"silver\"]",
            true,
        ),
        ("scope.labels[\"example.com/other\"] == \"\"", true),
        (
            "scope.dimensions.region == \"eu\" && scope.instances_per_agent > 1",
            true,
        ),
        ("user.name in [\"ann\", \"ben\"]", true),
        ("!(user.name in [\"cho\"]) && \"sre\" in user.teams", true),
        ("user.roles.exists(role, role == \"deployer\")", true),
        ("[\"a\", \"b\"].map(x, x + \"c\")[1] == \"bc\"", true),
        ("application.labels.all(key, key.startsWith(\"te\"))", true),
        ("release.version.matches(\"^2[.]\")", true),
        (
            "now >= timestamp(\"2026-12-20T00:00:00Z\") && now < timestamp(\"2027-01-05T00:00:00Z\")",
            false,
        ),
        ("now.getDayOfWeek(\"Europe/Berlin\") == 3", true),
        (
            "now - timestamp(\"2026-06-03T08:00:00Z\") < duration(\"2h\")",
            true,
        ),
        (
            "environment.tier >= 3 ? release.status == \"ready\" : true",
            true,
        ),
        (
            "strategy.rollback_rules > 0 && strategy.kind != \"all_in\"",
            false,
        ),
        (
            "strategy.steps.all(share, share >= 50.0) && strategy.bake >= duration(\"1m\")",
            true,
        ),
        ("size(user.teams) == 1 && user.teams.size() == 1", true),
    ] {
        assert_eq!(holds(text), Ok(wanted), "{text}");
    }
}

#[test]
fn mistakes_are_refused_with_their_place() {
    for (text, position, word) in [
        ("enviroment.name == \"production\"", 1, "enviroment"),
        (
            "environment.nam == \"production\"",
            12,
            "want name, labels and tier",
        ),
        (
            "true && scope.colour == \"red\"",
            14,
            "scope has no \"colour\"",
        ),
        ("scope.name", 1, "true or false"),
        ("scope.name == 1", 12, "compares a text with a number"),
        ("release.labels.hotfix == true", 23, "labels are texts"),
        ("scope.name == \"web\" &&", 23, ""),
        ("scope.name = \"web\"", 12, ""),
        ("scope.name == \"web", 15, ""),
        ("scope.name + 1 == \"web\"", 12, "a text and a number"),
        ("user.teams == \"sre\"", 12, "compares a list"),
        ("\"a\" in scope.name", 5, "in a text"),
        ("1 + 0.5 > 1.0", 3, "of one kind"),
        ("release.version.matches(\"(\")", 24, "regular expression"),
        ("release.version.matches(scope.name)", 24, "written out"),
        ("timestamp(\"tomorrow\") < now", 10, ""),
        ("now.getHours(\"Europe/Atlantis\") == 1", 13, "time zone"),
        ("lists.range(10) == []", 1, "lists"),
        ("{\"a\": 1}.a == 1", 1, "maps"),
        ("scope.labels.map(k, k)[0] == \"a\"", 17, "list"),
        ("nope(1)", 5, "nope"),
    ] {
        let mistake = Expression::compile(text, Subject::Deployment).unwrap_err();
        assert!(
            mistake.position == position && mistake.message.contains(word),
            "{text}: wanted {position} {word}, found {mistake:?}"
        );
    }
    for (subject, text) in [
        (Subject::Deployment, "strategy.kind == \"rolling\""),
        (Subject::Environment, "scope.name == \"web\""),
        (Subject::Release, "environment.name == \"a\""),
    ] {
        assert!(Expression::compile(text, subject).is_err(), "{text}");
    }
}

#[test]
fn what_could_take_long_is_refused() {
    let twenty = vec!["1"; 20].join(", ");
    let nested = format!(
        "[{twenty}].all(a, [{twenty}].all(b, [{twenty}].all(c, [{twenty}].all(d, a + b + c + d > 0))))"
    );
    for text in [
        nested,
        format!("{}true{}", "(".repeat(400), ")".repeat(400)),
        format!("{}true", "!".repeat(400)),
        format!("\"{}\" == \"\"", "a".repeat(3_000)),
        "\"a\".matches(\"(a{1000}){1000}\")".to_owned(),
    ] {
        assert!(
            Expression::compile(&text, Subject::Deployment).is_err(),
            "{text}"
        );
    }
}

#[test]
fn what_cannot_be_said_is_an_error() {
    for text in [
        "release.labels.missing > 1",
        "release.labels.hotfix > 1",
        "user.teams[7] == \"a\"",
        "1 / (environment.tier - 3) == 1",
    ] {
        assert!(holds(text).is_err(), "{text}");
    }
    let nothing = Expression::compile("scope.name == \"a\"", Subject::Deployment).unwrap();
    assert!(nothing.holds(&Facts::default()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_text_breaks_the_reader(text in "[a-z .\"'()\\[\\]{}!&|=<>?:0-9+*/%,-]{0,40}") {
        if let Ok(found) = Expression::compile(&text, Subject::Deployment) {
            found.holds(&shop()).ok();
        }
    }

    #[test]
    fn no_mixture_of_words_breaks_the_reader(words in prop::collection::vec(
        prop::sample::select(vec!["scope", ".", "labels", "name", "==", "\"a\"", "&&", "(", ")", "!", "[", "]", "in", "1", "exists", "x", ",", "has", "?", ":", "-"]), 0..16,
    )) {
        let text = words.join(" ");
        if let Ok(found) = Expression::compile(&text, Subject::Deployment) {
            found.holds(&shop()).ok();
        }
    }
}

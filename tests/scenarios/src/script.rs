//! The language of scenarios: one statement per line, read into values.
//!
//! ```text
//! agents a1 a2 a3                         hosts that act for every scope
//! scope web {json}                        a scope of application `shop`, fields as in a manifest
//! strategy slow {json}                    a strategy, fields as in a manifest
//! policy two {json}                       a policy, fields as in a manifest
//! application db                          another application than `shop`
//! release 2.0.0 [on a1] [behaviour …]     a release and how it behaves on hosts
//! publish 2.0.0 [of db] [building] [k=v …]  the same, told at its time, with labels
//! deploy 2.0.0 [of db] [to web] [with slow] [queue|supersede] [set {json}]
//! pause d2 · resume d2 · promote d2 · promote-full d2 · traffic d2 30% · finalize d2
//! cancel d2 · rollback d2 · retry d2 · grant d2 by ann · deny d2 by ann
//! stop web [cancel] · start web · restart web · return web [1.0.0] [force]
//! level 4 · delete application db         of the cluster; of an object of a kind
//! reject 2.0.0 · hold 2.0.0 · release-ready 2.0.0
//! environment staging {json}              an environment, fields as in a manifest
//! freeze 2h [let-run] [CEL] · thaw        nothing new starts; the oldest freeze is over
//! skip two/approval [for 2h] [in web] [of 2.0.0] · unskip
//! person ann approver                     joins with roles, or has these from now on
//! group 2.0.0 to web api [with slow] [queue|supersede] [{json of its rollout}]
//! pause g1 · resume g1 · … · grant g1 by ann · add g1 db · look g1     the same verbs, on groups
//! cut a1 · kill a1 · back a1 · stick a1 · free a1 · leader
//! measure 2.0.0 smoke good|bad|away [on a1]   what a check finds from now on
//! vanish d2 [on a1] · open d2 5 [on a1]
//! load web 50                             so many requests per second on each host from now on
//! wait 30s · wait d2 RUNNING · wait d2 step 2 · wait d2 end · wait quiet · wait g1 end
//! show                                    the deployments at this moment
//! explain d2                              every gate's answer, and what it waits for
//! ```
//!
//! Statements between two waits happen at one instant, before the planner looks.

use crate::checks::Measure;
use crate::governance::Word;
use crate::groups::{self, Saying};
use crate::manage::Manage;
use tidegate_shared::id::{Name, Version};
use tidegate_shared::selector::Labels;
use tidegate_shared::spec::{Role, parse_percent};
use tidegate_shared::time::Span;
use tidegate_shared::weight::Weight;

/// One statement with its line.
#[derive(Debug, Clone)]
pub struct Line {
    /// From 1.
    pub number: usize,
    /// As written.
    pub text: String,
    /// As understood.
    pub statement: Statement,
}

/// A deployment by the order of its creation: `d1`, `d2` …
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nth(pub usize);

impl std::fmt::Display for Nth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "d{}", self.0)
    }
}

/// What a line says.
#[derive(Debug, Clone)]
pub enum Statement {
    /// Hosts.
    Agents(Vec<Name>),
    /// An object of a kind, as JSON of its spec.
    Object {
        /// `scope`, `strategy`, `policy`, `parameter`.
        kind: String,
        /// Its name.
        name: Name,
        /// Its spec.
        json: String,
    },
    /// A release and how it behaves.
    Release {
        /// Its version.
        version: Version,
        /// None: on every host.
        on: Option<Name>,
        /// What is not ordinary about it.
        behaviours: Vec<Behaviour>,
    },
    /// A release that is made at its time.
    Publish {
        /// Of which application.
        application: Name,
        /// Its version.
        version: Version,
        /// Its assets are not all there yet.
        building: bool,
        /// Its labels.
        labels: Labels,
    },
    /// A deployment.
    Deploy {
        /// Of which application.
        application: Name,
        /// Which release.
        version: Version,
        /// Where.
        scope: Name,
        /// How.
        strategy: Option<Name>,
        /// `fail`, `queue`, `supersede`.
        on_conflict: String,
        /// Fields of the strategy for this one alone.
        overrides: String,
    },
    /// A person's verb on a deployment.
    Verb {
        /// Which verb.
        verb: String,
        /// On which deployment.
        nth: Nth,
        /// Of `traffic`.
        weight: Option<Weight>,
    },
    /// A person's decision.
    Decide {
        /// On which deployment.
        nth: Nth,
        /// Yes or no.
        granted: bool,
        /// Whose.
        by: Name,
    },
    /// Something about a scope: `stop`, `start`, `restart`, `return`.
    Scope {
        /// Which verb.
        verb: String,
        /// Which scope.
        name: Name,
        /// Of `return`.
        version: Option<Version>,
        /// `cancel` of stop, `force` of return.
        flag: bool,
    },
    /// A new status of a release.
    Status {
        /// `rejected`, `paused`, `ready`.
        status: String,
        /// Which release.
        version: Version,
    },
    /// What administrators do.
    Manage(Manage),
    /// Somebody with roles; from the first one on people have roles at all.
    Person(Name, Vec<Role>),
    /// People's word over rules.
    Word(Word),
    /// What people say to groups.
    Group(Saying),
    /// A fault, or its end.
    Fault(Fault),
    /// What a check finds from now on.
    Measure(Measure),
    /// Lets time pass.
    Wait(Wait),
    /// Prints where everything is.
    Show,
    /// Prints what a deployment waits for.
    Explain(Nth),
}

/// How a release behaves where that is not ordinary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Behaviour {
    /// Ordinary.
    Good,
    /// Its process ends at once.
    Crashes,
    /// It runs and never passes its check.
    NeverHealthy,
    /// It passes its check so long after the start.
    HealthyAfter(Span),
    /// Fetching and unpacking take so long.
    StagesIn(Span),
    /// Staging fails for a while.
    Unreachable,
    /// Staging fails for good: a word of `PermanentErrorKind`.
    Refused(String),
    /// Such a share of its answers is 5xx.
    ServerErrors(Weight),
    /// Such a share of its answers is 4xx.
    ClientErrors(Weight),
    /// Each answer takes so long.
    Latency(Span),
}

/// What goes wrong, or is right again.
#[derive(Debug, Clone)]
pub enum Fault {
    /// No session; the agent and its host go on.
    Cut(Name),
    /// The host is dead.
    Kill(Name),
    /// Right again.
    Back(Name),
    /// Its data plane takes no new routes for now.
    Stick(Name),
    /// It takes them again.
    Free(Name),
    /// Another coordinator leads, which knows nothing yet.
    Leader,
    /// The processes of a version end.
    Vanish(Nth, Option<Name>),
    /// So many requests of a version are open and stay so.
    Open(Nth, u64, Option<Name>),
    /// So many requests per second come to a scope on each host.
    Load(Name, u64),
}

/// What is waited for.
#[derive(Debug, Clone)]
pub enum Wait {
    /// So long.
    For(Span),
    /// A deployment has a status, in the words of the wire.
    Status(Nth, String),
    /// A step is acknowledged by the data plane; from 1.
    Step(Nth, u32),
    /// A deployment has ended.
    End(Nth),
    /// Nothing is under way, waiting or left over.
    Quiet,
    /// A group has a status, or `end`.
    Group(usize, String),
}

/// Reads the script of a scenario: everything above the separator.
///
/// # Errors
/// Names the line and what is wrong with it.
pub fn read(text: &str) -> Result<Vec<Line>, String> {
    let mut lines = Vec::new();
    for (position, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let statement =
            statement(line).map_err(|error| format!("line {}: {error}: {line}", position + 1))?;
        lines.push(Line {
            number: position + 1,
            text: line.to_owned(),
            statement,
        });
    }
    Ok(lines)
}

/// The words of a line, read one after another.
struct Words<'a>(&'a str);

impl<'a> Words<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let rest = self.0.trim_start();
        if rest.is_empty() {
            return None;
        }
        let (word, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        self.0 = rest;
        Some(word)
    }

    fn need(&mut self, what: &str) -> Result<&'a str, String> {
        self.next().ok_or_else(|| format!("{what} is missing"))
    }

    fn parse<T: std::str::FromStr>(&mut self, what: &str) -> Result<T, String>
    where
        T::Err: std::fmt::Display,
    {
        self.need(what)?.parse().map_err(|e: T::Err| e.to_string())
    }

    fn nth(&mut self) -> Result<Nth, String> {
        let word = self.need("a deployment")?;
        word.strip_prefix('d')
            .and_then(|number| number.parse().ok())
            .map(Nth)
            .ok_or_else(|| format!("\"{word}\" is no deployment such as d1"))
    }

    fn optional_on(&mut self) -> Result<Option<Name>, String> {
        match self.next() {
            None => Ok(None),
            Some("on") => self.parse("an agent").map(Some),
            Some(word) => Err(format!("\"{word}\" is not understood")),
        }
    }

    fn end(&mut self) -> Result<(), String> {
        match self.next() {
            None => Ok(()),
            Some(word) => Err(format!("\"{word}\" is too much")),
        }
    }

    fn json(&mut self) -> String {
        let json = self.0.trim().to_owned();
        self.0 = "";
        json
    }
}

fn statement(line: &str) -> Result<Statement, String> {
    let mut words = Words(line);
    let first = words.need("a statement")?;
    if groups::is_about(first, words.0) {
        return Saying::parse(first, words.0).map(Statement::Group);
    }
    let statement = match first {
        "agents" => {
            let mut names = Vec::new();
            while words.0.trim() != "" {
                names.push(words.parse("an agent")?);
            }
            Statement::Agents(names)
        }
        "scope" | "strategy" | "policy" | "parameter" | "environment" | "application" => {
            Statement::Object {
                kind: first.to_owned(),
                name: words.parse("a name")?,
                json: words.json(),
            }
        }
        "release" => release(&mut words)?,
        "publish" => publish(&mut words)?,
        "deploy" => deploy(&mut words)?,
        "pause" | "resume" | "promote" | "promote-full" | "finalize" | "cancel" | "rollback"
        | "retry" => Statement::Verb {
            verb: first.to_owned(),
            nth: words.nth()?,
            weight: None,
        },
        "traffic" => Statement::Verb {
            verb: first.to_owned(),
            nth: words.nth()?,
            weight: Some(percent(words.need("a percentage")?)?),
        },
        "grant" | "deny" => {
            let nth = words.nth()?;
            if words.next() != Some("by") {
                return Err("want `by NAME`".to_owned());
            }
            Statement::Decide {
                nth,
                granted: first == "grant",
                by: words.parse("a person")?,
            }
        }
        "stop" | "start" | "restart" | "return" => scope(first, &mut words)?,
        "reject" | "hold" | "release-ready" => Statement::Status {
            status: match first {
                "reject" => "rejected",
                "hold" => "paused",
                _ => "ready",
            }
            .to_owned(),
            version: words.parse("a version")?,
        },
        "wait" => Statement::Wait(wait(&mut words)?),
        "show" => Statement::Show,
        "person" => {
            let name = words.parse("a person")?;
            let mut roles = Vec::new();
            while let Some(word) = words.next() {
                roles.push(word.parse().map_err(|_| format!("\"{word}\" is no role"))?);
            }
            Statement::Person(name, roles)
        }
        "explain" => Statement::Explain(words.nth()?),
        "freeze" | "thaw" | "skip" | "unskip" => {
            Statement::Word(Word::parse(first, &words.json())?)
        }
        "level" | "delete" => Statement::Manage(Manage::parse(first, &words.json())?),
        "measure" => Statement::Measure(Measure::parse(&words.json())?),
        _ => Statement::Fault(fault(first, &mut words)?),
    };
    words.end()?;
    Ok(statement)
}

fn percent(text: &str) -> Result<Weight, String> {
    parse_percent(text).ok_or_else(|| format!("\"{text}\" is no percentage"))
}

fn release(words: &mut Words<'_>) -> Result<Statement, String> {
    let version = words.parse("a version")?;
    let (mut on, mut behaviours) = (None, Vec::new());
    while let Some(word) = words.next() {
        behaviours.push(match word {
            "on" => {
                on = Some(words.parse("an agent")?);
                continue;
            }
            "good" => Behaviour::Good,
            "crashes" => Behaviour::Crashes,
            "never-healthy" => Behaviour::NeverHealthy,
            "healthy-after" => Behaviour::HealthyAfter(words.parse("a time")?),
            "stages-in" => Behaviour::StagesIn(words.parse("a time")?),
            "unreachable" => Behaviour::Unreachable,
            "refused" => Behaviour::Refused(words.need("a kind of error")?.to_owned()),
            "server-errors" => Behaviour::ServerErrors(percent(words.need("a percentage")?)?),
            "client-errors" => Behaviour::ClientErrors(percent(words.need("a percentage")?)?),
            "latency" => Behaviour::Latency(words.parse("a time")?),
            other => return Err(format!("\"{other}\" is no behaviour")),
        });
    }
    Ok(Statement::Release {
        version,
        on,
        behaviours,
    })
}

fn shop() -> Result<Name, String> {
    Name::new("shop").map_err(|error| error.to_string())
}

fn publish(words: &mut Words<'_>) -> Result<Statement, String> {
    let version = words.parse("a version")?;
    let (mut application, mut building, mut labels) = (shop()?, false, Labels::new());
    while let Some(word) = words.next() {
        match (word, word.split_once('=')) {
            ("of", _) => application = words.parse("an application")?,
            ("building", _) => building = true,
            (_, Some((key, value))) => {
                labels.insert(key.to_owned(), value.to_owned());
            }
            (other, None) => return Err(format!("\"{other}\" is not understood")),
        }
    }
    Ok(Statement::Publish {
        application,
        version,
        building,
        labels,
    })
}

fn default_scope() -> Result<Name, String> {
    Name::new("web").map_err(|error| error.to_string())
}

fn deploy(words: &mut Words<'_>) -> Result<Statement, String> {
    let version = words.parse("a version")?;
    let (mut scope, mut strategy) = (default_scope()?, None);
    let mut application = shop()?;
    let (mut on_conflict, mut overrides) = ("fail".to_owned(), "{}".to_owned());
    while let Some(word) = words.next() {
        match word {
            "of" => application = words.parse("an application")?,
            "to" => scope = words.parse("a scope")?,
            "with" => strategy = Some(words.parse("a strategy")?),
            "queue" | "supersede" => on_conflict = word.to_owned(),
            "set" => overrides = words.json(),
            other => return Err(format!("\"{other}\" is not understood")),
        }
    }
    Ok(Statement::Deploy {
        application,
        version,
        scope,
        strategy,
        on_conflict,
        overrides,
    })
}

fn scope(verb: &str, words: &mut Words<'_>) -> Result<Statement, String> {
    let name = words.parse("a scope")?;
    let (mut version, mut flag) = (None, false);
    while let Some(word) = words.next() {
        match word {
            "cancel" | "force" => flag = true,
            other => version = Some(other.parse().map_err(|_| format!("\"{other}\"?"))?),
        }
    }
    Ok(Statement::Scope {
        verb: verb.to_owned(),
        name,
        version,
        flag,
    })
}

fn fault(first: &str, words: &mut Words<'_>) -> Result<Fault, String> {
    Ok(match first {
        "cut" => Fault::Cut(words.parse("an agent")?),
        "kill" => Fault::Kill(words.parse("an agent")?),
        "back" => Fault::Back(words.parse("an agent")?),
        "stick" => Fault::Stick(words.parse("an agent")?),
        "free" => Fault::Free(words.parse("an agent")?),
        "leader" => Fault::Leader,
        "load" => Fault::Load(words.parse("a scope")?, words.parse("requests per second")?),
        "vanish" => Fault::Vanish(words.nth()?, words.optional_on()?),
        "open" => Fault::Open(
            words.nth()?,
            words.parse("a number of requests")?,
            words.optional_on()?,
        ),
        other => return Err(format!("\"{other}\" is no statement")),
    })
}

fn wait(words: &mut Words<'_>) -> Result<Wait, String> {
    let word = words.need("what to wait for")?;
    if word == "quiet" {
        return Ok(Wait::Quiet);
    }
    if let Some(nth) = groups::nth(word) {
        let status = words.need("a status or `end`")?;
        return Ok(Wait::Group(nth, status.to_owned()));
    }
    if !word.starts_with('d') {
        return word
            .parse()
            .map(Wait::For)
            .map_err(|error: tidegate_shared::time::SpanError| error.to_string());
    }
    let nth = Words(word).nth()?;
    Ok(match words.need("a status, `step N` or `end`")? {
        "step" => Wait::Step(nth, words.parse("a number")?),
        "end" => Wait::End(nth),
        status => Wait::Status(nth, status.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_located() {
        for (text, part) in [
            ("agents a1\nfly d1", "line 2"),
            ("deploy", "a version is missing"),
            ("pause x1", "no deployment"),
            ("traffic d1 200%", "no percentage"),
            ("wait d1", "a status"),
            ("cancel d1 now", "too much"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}

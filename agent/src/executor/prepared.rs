//! What goes around every start and stop, whatever runs the workload: parameter files and hooks.
//!
//! [`Prepared`] stands before an executor and is one itself. A start writes the files, runs
//! `before_start`, has the executor start, and runs `after_start` before it says `Started`: until
//! then nobody probes the instance or sends it requests. A stop runs `before_stop`, has the executor
//! stop, and runs `after_stop`. Hooks that an earlier process of the agent left unfinished are known
//! by their mark: a start begins again from the process up, a stop is taken up where the reconcile
//! loop orders it again. An executor needs to know nothing of all this.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tidegate_agent_core::observed::Event;
use tidegate_agent_core::place::{InstanceKey, PlaceKey};
use tidegate_shared::spec::{HookKind, Limits};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tracing::warn;

use super::process::{Refusal, ordinals};
use super::{Capabilities, Events, Executor, Launch, Running, Task, instance_dir};
use crate::{hooks, parameter_files};

/// How long a failed stop hook is told to the cluster.
const TOLD_FOR: Duration = Duration::from_secs(3_600);
/// Most of them at a time.
const MOST_TOLD: usize = 16;

/// See the module.
pub struct Prepared(Arc<Shared>);

struct Shared {
    inner: Arc<dyn Executor>,
    instances: PathBuf,
    outer: Events,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// Who takes the executor's events about an instance; without one they are passed on.
    inboxes: BTreeMap<InstanceKey, UnboundedSender<Event>>,
    /// One task at a time per instance, in their order.
    orders: BTreeMap<InstanceKey, Arc<tokio::sync::Mutex<()>>>,
    troubles: VecDeque<(Instant, String)>,
}

impl Prepared {
    /// Stands before the executor that `make` makes for the events it is given. Must be called in a
    /// runtime.
    pub fn new(
        instances: PathBuf,
        outer: Events,
        make: impl FnOnce(Events) -> Arc<dyn Executor>,
    ) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            inner: make(sender),
            instances,
            outer,
            table: Mutex::default(),
        });
        tokio::spawn(pass_on(Arc::downgrade(&shared), receiver));
        Self(shared)
    }
}

/// Passes the executor's events on to whoever waits for them.
async fn pass_on(shared: std::sync::Weak<Shared>, mut events: UnboundedReceiver<Event>) {
    while let Some(event) = events.recv().await {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let inbox = about(&event).and_then(|key| shared.table().inboxes.get(key).cloned());
        match inbox {
            // The inbox is taken away under the table's lock, with what is in it.
            Some(inbox) => {
                if let Err(refused) = inbox.send(event) {
                    shared.tell(refused.0);
                }
            }
            None => shared.tell(event),
        }
    }
}

fn about(event: &Event) -> Option<&InstanceKey> {
    match event {
        Event::Started { instance, .. }
        | Event::StartFailed { instance, .. }
        | Event::Exited { instance, .. }
        | Event::Stopped { instance, .. } => Some(instance),
        Event::Staged { .. }
        | Event::StageFailed { .. }
        | Event::Probed { .. }
        | Event::Removed { .. }
        | Event::Traffic(_) => None,
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: Event) {
        // The loop has ended: nobody needs to know any more.
        self.outer.send(event).ok();
    }

    fn dir(&self, key: &InstanceKey) -> PathBuf {
        instance_dir(&self.instances, key)
    }

    fn order(&self, key: &InstanceKey) -> Arc<tokio::sync::Mutex<()>> {
        let mut table = self.table();
        Arc::clone(table.orders.entry(key.clone()).or_default())
    }

    fn runs(&self, key: &InstanceKey, incarnation: u32) -> bool {
        let running = self.inner.observe();
        running
            .iter()
            .any(|running| running.instance == *key && running.incarnation == incarnation)
    }

    fn open_inbox(&self, key: &InstanceKey) -> UnboundedReceiver<Event> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.table().inboxes.insert(key.clone(), sender);
        receiver
    }

    /// From now on events are passed on again, and what still came is.
    fn close_inbox(&self, key: &InstanceKey, mut inbox: UnboundedReceiver<Event>) {
        self.table().inboxes.remove(key);
        inbox.close();
        while let Ok(event) = inbox.try_recv() {
            self.tell(event);
        }
    }

    fn trouble(&self, line: String) {
        warn!("{line}");
        let mut table = self.table();
        table.troubles.push_back((Instant::now(), line));
        if table.troubles.len() > MOST_TOLD {
            table.troubles.pop_front();
        }
    }

    async fn start(&self, launch: Launch) {
        let key = launch.instance.clone();
        let order = self.order(&key);
        let _turn = order.lock().await;
        if self.runs(&key, launch.incarnation) {
            return self.inner.perform(Task::Start(Box::new(launch)));
        }
        if let Err(refusal) = self.prepare(&launch).await {
            return self.tell(Event::StartFailed {
                instance: key,
                incarnation: launch.incarnation,
                permanent: refusal.permanent,
                message: refusal.message,
            });
        }
        if launch.run.hooks.after_start.is_empty() {
            return self.inner.perform(Task::Start(Box::new(launch)));
        }
        let dir = self.dir(&key);
        // Before the process is there: without its hook it is not started.
        if let Err(failure) = hooks::mark(HookKind::AfterStart, &launch, &dir) {
            return self.tell(Event::StartFailed {
                instance: key,
                incarnation: launch.incarnation,
                permanent: failure.permanent,
                message: failure.message,
            });
        }
        let mut inbox = self.open_inbox(&key);
        self.inner.perform(Task::Start(Box::new(launch.clone())));
        let answer = match inbox.recv().await {
            Some(started @ Event::Started { .. }) => {
                self.after_start(&launch, started, &mut inbox).await
            }
            Some(other) => {
                hooks::settle(&dir);
                other
            }
            // The executor is gone with the agent.
            None => return,
        };
        self.tell(answer);
        self.close_inbox(&key, inbox);
    }

    /// What has to be there before the process starts.
    async fn prepare(&self, launch: &Launch) -> Result<(), Refusal> {
        let dir = self.dir(&launch.instance);
        if hooks::interrupted(&dir).is_some() {
            hooks::end_leftovers(&launch.instance.id(), &dir).await;
            hooks::settle(&dir);
        }
        let (owned, folder) = (launch.clone(), dir.clone());
        let written =
            tokio::task::spawn_blocking(move || parameter_files::write(&owned, &folder)).await;
        written.unwrap_or_else(|error| {
            Err(Refusal {
                permanent: false,
                message: format!("the parameter files were not written: {error}"),
            })
        })?;
        let ran = hooks::run(HookKind::BeforeStart, launch, &dir).await;
        ran.map_err(|failure| Refusal {
            permanent: failure.permanent,
            message: failure.message,
        })
    }

    /// Runs `after_start` beside the process; answers with what came of the start.
    async fn after_start(
        &self,
        launch: &Launch,
        started: Event,
        inbox: &mut UnboundedReceiver<Event>,
    ) -> Event {
        let dir = self.dir(&launch.instance);
        let failure = tokio::select! {
            ran = hooks::run(HookKind::AfterStart, launch, &dir) => match ran {
                Ok(()) => return started,
                Err(failure) => failure,
            },
            ended = inbox.recv() => {
                hooks::end_leftovers(&launch.instance.id(), &dir).await;
                hooks::settle(&dir);
                return ended.unwrap_or(started);
            }
        };
        self.stop_inner(&launch.instance, launch.incarnation, inbox)
            .await;
        Event::Exited {
            instance: launch.instance.clone(),
            incarnation: launch.incarnation,
            how: failure.message,
        }
    }

    /// Has the executor stop an instance; answers with how its process ended.
    async fn stop_inner(
        &self,
        key: &InstanceKey,
        incarnation: u32,
        inbox: &mut UnboundedReceiver<Event>,
    ) -> Option<String> {
        self.inner.perform(Task::Stop {
            instance: key.clone(),
            incarnation,
            launch: None,
        });
        let mut ended = None;
        while let Some(event) = inbox.recv().await {
            match event {
                Event::Stopped { how, .. } => return how.or(ended),
                // It ended by itself meanwhile.
                Event::Exited { how, .. } => ended = Some(how),
                Event::Started { .. }
                | Event::StartFailed { .. }
                | Event::Staged { .. }
                | Event::StageFailed { .. }
                | Event::Probed { .. }
                | Event::Removed { .. }
                | Event::Traffic(_) => {}
            }
        }
        ended
    }

    async fn stop(&self, key: InstanceKey, incarnation: u32, launch: Option<Launch>) {
        let order = self.order(&key);
        let _turn = order.lock().await;
        let dir = self.dir(&key);
        let interrupted = hooks::interrupted(&dir);
        if interrupted.is_some() {
            hooks::end_leftovers(&key.id(), &dir).await;
        }
        let ran = self.runs(&key, incarnation);
        let is_stop = interrupted.is_some_and(HookKind::is_of_stop);
        let hooked = launch.filter(|_| ran || is_stop);
        let mut inbox = self.open_inbox(&key);
        let mut stories = Vec::new();
        if let Some(launch) = hooked
            .as_ref()
            .filter(|_| interrupted != Some(HookKind::AfterStop))
        {
            stories.extend(self.stop_hook(HookKind::BeforeStop, launch).await);
        }
        // Before the process ends: who comes back then knows that a hook is still due.
        if let Some(launch) = &hooked
            && let Err(failure) = hooks::mark(HookKind::AfterStop, launch, &dir)
        {
            self.trouble(format!("{key}: {}", failure.message));
        }
        let ended = self.stop_inner(&key, incarnation, &mut inbox).await;
        if let Some(launch) = &hooked {
            stories.extend(self.stop_hook(HookKind::AfterStop, launch).await);
        }
        hooks::settle(&dir);
        let told: Vec<String> = ended.into_iter().chain(stories).collect();
        self.tell(Event::Stopped {
            instance: key.clone(),
            incarnation,
            how: (!told.is_empty()).then(|| told.join("\n")),
        });
        self.close_inbox(&key, inbox);
    }

    /// A failure is told and changes nothing.
    async fn stop_hook(&self, kind: HookKind, launch: &Launch) -> Option<String> {
        let dir = self.dir(&launch.instance);
        let failure = hooks::run(kind, launch, &dir).await.err()?;
        self.trouble(format!("{}: {}", launch.instance, failure.message));
        Some(failure.message)
    }

    /// A process that is there, but whose start an earlier agent did not finish: it ends, and the
    /// instance starts again from the beginning.
    async fn discard(&self, running: Running) {
        let key = running.instance.clone();
        let order = self.order(&key);
        let _turn = order.lock().await;
        let dir = self.dir(&key);
        let incarnation = running.incarnation;
        let mut inbox = self.open_inbox(&key);
        hooks::end_leftovers(&key.id(), &dir).await;
        self.inner.perform(Task::Adopt(running));
        self.stop_inner(&key, incarnation, &mut inbox).await;
        hooks::settle(&dir);
        self.table().inboxes.remove(&key);
    }
}

impl Shared {
    /// Hooks of a start that was interrupted, and is not wished any more, end with their place.
    async fn remove(&self, place: PlaceKey) {
        for ordinal in ordinals(&self.instances.join(place.folder())) {
            let instance = InstanceKey {
                place: place.clone(),
                ordinal,
            };
            let dir = self.dir(&instance);
            if hooks::interrupted(&dir).is_some() {
                hooks::end_leftovers(&instance.id(), &dir).await;
            }
        }
        self.table().orders.retain(|key, _| key.place != place);
        self.inner.perform(Task::Remove(place));
    }
}

impl Executor for Prepared {
    fn capabilities(&self) -> Capabilities {
        self.0.inner.capabilities()
    }

    fn limit_trouble(&self, limits: &Limits) -> Option<String> {
        self.0.inner.limit_trouble(limits)
    }

    fn observe(&self) -> Vec<Running> {
        self.0.inner.observe()
    }

    fn perform(&self, task: Task) {
        let shared = Arc::clone(&self.0);
        match task {
            Task::Start(launch) => {
                tokio::spawn(async move { shared.start(*launch).await });
            }
            Task::Adopt(running) => {
                match hooks::interrupted(&shared.dir(&running.instance)) {
                    Some(HookKind::BeforeStart | HookKind::AfterStart) => {
                        // Told at once, so that nobody takes it for one that can serve.
                        shared.tell(Event::Exited {
                            instance: running.instance.clone(),
                            incarnation: running.incarnation,
                            how:
                                "the agent ended while a start hook ran: the instance starts again"
                                    .to_owned(),
                        });
                        tokio::spawn(async move { shared.discard(running).await });
                    }
                    Some(HookKind::BeforeStop | HookKind::AfterStop) | None => {
                        shared.inner.perform(Task::Adopt(running));
                    }
                }
            }
            Task::Stop {
                instance,
                incarnation,
                launch,
            } => {
                tokio::spawn(async move {
                    shared.stop(instance, incarnation, launch.map(|l| *l)).await;
                });
            }
            Task::Remove(place) => {
                tokio::spawn(async move { shared.remove(place).await });
            }
        }
    }

    fn troubles(&self) -> Vec<String> {
        let mut table = self.0.table();
        table.troubles.retain(|(at, _)| at.elapsed() < TOLD_FOR);
        let inner = self.0.inner.troubles().into_iter();
        inner
            .chain(table.troubles.iter().map(|(_, line)| line.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{launch, next, suite};
    use super::super::process::ProcessExecutor;
    use super::super::{output, procfs};
    use super::*;
    use std::path::Path;
    use tidegate_shared::spec::{Hook, RunSpec};
    use tidegate_shared::time::Span;

    struct Bench {
        _dir: tempfile::TempDir,
        release: PathBuf,
        instances: PathBuf,
        executor: Prepared,
        events: UnboundedReceiver<Event>,
    }

    fn executor(instances: &Path) -> (Prepared, UnboundedReceiver<Event>) {
        let (sender, events) = mpsc::unbounded_channel();
        let folder = instances.to_owned();
        let executor = Prepared::new(folder.clone(), sender, |events| {
            Arc::new(ProcessExecutor::new(
                folder,
                Duration::from_secs(10),
                events,
            ))
        });
        (executor, events)
    }

    fn bench() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let release = dir.path().join("release");
        let instances = dir.path().join("instances");
        std::fs::create_dir(&release).unwrap();
        let (executor, events) = executor(&instances);
        Bench {
            _dir: dir,
            release,
            instances,
            executor,
            events,
        }
    }

    fn hook(script: &str) -> Vec<Hook> {
        vec![Hook {
            command: "/bin/sh".to_owned(),
            args: vec!["-c".to_owned(), script.to_owned()],
            timeout: Span::from_secs(60),
        }]
    }

    fn shell(script: &str) -> RunSpec {
        RunSpec {
            command: "/bin/sh".to_owned(),
            args: vec!["-c".to_owned(), script.to_owned()],
            ..RunSpec::default()
        }
    }

    /// A process that leaves `up` and `down`, and hooks that write down what they see of it.
    fn storied() -> RunSpec {
        let mut run = shell(
            "echo process >> story; trap 'echo end >> story; exit 0' TERM; touch up; while :; do sleep 0.05; done",
        );
        run.hooks.before_start = hook("echo before_start >> story");
        run.hooks.after_start =
            hook("while [ ! -e up ]; do sleep 0.02; done; echo after_start >> story");
        run.hooks.before_stop = hook("echo before_stop >> story");
        run.hooks.after_stop = hook("echo after_stop >> story");
        run
    }

    fn story(release: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(release.join("story")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn stop_of(launch: &Launch) -> Task {
        Task::Stop {
            instance: launch.instance.clone(),
            incarnation: launch.incarnation,
            launch: Some(Box::new(launch.clone())),
        }
    }

    async fn until(what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !holds() {
            assert!(Instant::now() < deadline, "never {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn it_conforms_like_the_executor_behind_it() {
        let mut bench = bench();
        let mut missing = shell("");
        missing.command = "./nothing-here".to_owned();
        let mut long = shell("exec sleep 600");
        long.hooks.after_start = hook("true");
        let commands = (long, missing);
        suite(&bench.executor, &mut bench.events, &bench.release, commands).await;
    }

    #[tokio::test]
    async fn hooks_go_around_the_process_in_their_order() {
        let mut bench = bench();
        let launch = launch(0, &bench.release, storied());
        bench
            .executor
            .perform(Task::Start(Box::new(launch.clone())));
        assert!(matches!(
            next(&mut bench.events).await,
            Event::Started { .. }
        ));
        assert_eq!(
            story(&bench.release),
            ["before_start", "process", "after_start"]
        );
        bench.executor.perform(stop_of(&launch));
        assert!(matches!(
            next(&mut bench.events).await,
            Event::Stopped { .. }
        ));
        assert_eq!(
            story(&bench.release)[3..],
            ["before_stop", "end", "after_stop"]
        );
        assert_eq!(bench.executor.troubles(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_failed_before_start_starts_nothing_and_a_failed_after_start_ends_the_process() {
        let mut bench = bench();
        let mut first = launch(0, &bench.release, storied());
        first.run.hooks.before_start = hook("echo no database; exit 7");
        bench.executor.perform(Task::Start(Box::new(first.clone())));
        let Event::StartFailed {
            permanent, message, ..
        } = next(&mut bench.events).await
        else {
            panic!("started");
        };
        assert!(!permanent && message.contains("no database"), "{message}");
        assert_eq!(story(&bench.release), Vec::<String>::new());
        let log = output::tail(
            &output::Stream::Hooks.path(&instance_dir(&bench.instances, &first.instance)),
            9,
        );
        assert!(log.contains(&"no database".to_owned()), "{log:?}");

        first.run = storied();
        first.run.hooks.after_start =
            hook("while [ ! -e up ]; do sleep 0.02; done; echo cold >&2; exit 1");
        bench.executor.perform(Task::Start(Box::new(first)));
        let Event::Exited { how, .. } = next(&mut bench.events).await else {
            panic!("no end");
        };
        assert!(how.contains("after_start") && how.contains("cold"), "{how}");
        assert_eq!(bench.executor.observe(), []);
        assert_eq!(story(&bench.release), ["before_start", "process", "end"]);
    }

    #[tokio::test]
    async fn a_process_that_ends_during_after_start_is_told_at_once() {
        let mut bench = bench();
        let mut launch = launch(0, &bench.release, shell("exit 4"));
        launch.run.hooks.after_start = hook("exec sleep 600");
        bench
            .executor
            .perform(Task::Start(Box::new(launch.clone())));
        let Event::Exited { how, .. } = next(&mut bench.events).await else {
            panic!("no end");
        };
        assert!(how.contains("exit status 4"), "{how}");
        let dir = instance_dir(&bench.instances, &launch.instance);
        assert!(procfs::find_hooks(&launch.instance.id(), &dir).is_empty());
    }

    #[tokio::test]
    async fn failed_stop_hooks_are_told_and_the_stop_goes_on() {
        let mut bench = bench();
        let mut launch = launch(0, &bench.release, storied());
        launch.run.hooks.before_stop = hook("echo cannot deregister; exit 1");
        bench
            .executor
            .perform(Task::Start(Box::new(launch.clone())));
        assert!(matches!(
            next(&mut bench.events).await,
            Event::Started { .. }
        ));
        bench.executor.perform(stop_of(&launch));
        let Event::Stopped { how, .. } = next(&mut bench.events).await else {
            panic!("not stopped");
        };
        assert!(how.unwrap().contains("cannot deregister"));
        assert_eq!(bench.executor.observe(), []);
        let troubles = bench.executor.troubles();
        assert_eq!(troubles.len(), 1);
        assert!(troubles[0].contains(&launch.instance.id()), "{troubles:?}");
        assert_eq!(story(&bench.release).last().unwrap(), "after_stop");
    }

    #[tokio::test]
    async fn an_agent_that_comes_back_during_after_start_begins_the_start_again() {
        let mut first = bench();
        let mut launch = launch(0, &first.release, storied());
        launch.run.hooks.after_start = hook("echo hooked >> hooked; exec sleep 600");
        first
            .executor
            .perform(Task::Start(Box::new(launch.clone())));
        let (release, dir) = (
            first.release.clone(),
            instance_dir(&first.instances, &launch.instance),
        );
        until("the hook runs", || release.join("hooked").exists()).await;
        let running = first.executor.observe().remove(0);
        // Another process of the agent finds the mark, the process and the hook.
        let (second, mut events) = executor(&first.instances);
        let hook_process = procfs::find_hooks(&launch.instance.id(), &dir).remove(0);
        second.perform(Task::Adopt(running.clone()));
        let Event::Exited { how, .. } = next(&mut events).await else {
            panic!("adopted");
        };
        assert!(how.contains("starts again"), "{how}");
        launch.incarnation = 2;
        launch.run.hooks.after_start = hook("true");
        second.perform(Task::Start(Box::new(launch.clone())));
        assert!(matches!(
            next(&mut events).await,
            Event::Started { incarnation: 2, .. }
        ));
        assert!(!procfs::is_alive(&running.process) && !procfs::is_alive(&hook_process));
        second.perform(stop_of(&launch));
        assert!(matches!(next(&mut events).await, Event::Stopped { .. }));
        drop(first.events.try_recv());
    }

    #[tokio::test]
    async fn a_stop_that_was_interrupted_is_completed_with_its_hooks() {
        let bench = bench();
        let mut launch = launch(0, &bench.release, storied());
        launch.run.hooks.after_stop = hook("echo half >> half; exec sleep 600");
        let first = executor(&bench.instances);
        let (earlier, mut events) = first;
        earlier.perform(Task::Start(Box::new(launch.clone())));
        assert!(matches!(next(&mut events).await, Event::Started { .. }));
        earlier.perform(stop_of(&launch));
        let half = bench.release.join("half");
        until("after_stop runs", || half.exists()).await;

        launch.run.hooks.after_stop = hook("echo whole >> whole");
        let (second, mut events) = executor(&bench.instances);
        second.perform(stop_of(&launch));
        assert!(matches!(next(&mut events).await, Event::Stopped { .. }));
        assert!(bench.release.join("whole").exists());
        let before: Vec<_> = story(&bench.release);
        let count = before.iter().filter(|line| *line == "before_stop").count();
        assert_eq!(count, 1, "what was done before stays done");
        second.perform(stop_of(&launch));
        assert!(matches!(next(&mut events).await, Event::Stopped { .. }));
        let whole = std::fs::read_to_string(bench.release.join("whole")).unwrap();
        assert_eq!(whole.lines().count(), 1, "a stop twice runs them once");
    }
}

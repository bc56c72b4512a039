//! Open watches: something as it is now, and again at each change, until it has ended.
//!
//! What is seen live only the leader knows. Where this node leads it looks itself, else it passes on
//! the leader's stream; when the lead moves it goes on with the new leader. What is watched is a
//! [`Watched`]; the services open watches.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tidegate_coordinator_core::State;
use tidegate_shared::error::Reason;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use super::authn::Caller;
use super::{Context, relay, status};
use crate::replica::View;

/// Shortest interval of a watch's live figures.
const FASTEST: Duration = Duration::from_millis(100);
/// What a watch takes when nothing is said.
const USUAL: Duration = Duration::from_secs(1);

/// Something that can be watched.
pub trait Watched: Send + Sync + 'static {
    /// The request that opens the watch.
    type Message: Clone + Send + Sync + 'static;
    /// What is streamed: complete states.
    type Seen: Clone + PartialEq + Send + Sync + 'static;
    /// Differs whenever the replicated part of what is seen does.
    type Mark: PartialEq + Send;

    /// Opens the same watch at the leader.
    fn open(
        channel: Channel,
        request: Request<Self::Message>,
    ) -> impl Future<Output = Result<Response<Streaming<Self::Seen>>, Status>> + Send;

    /// It as it is now.
    fn look(
        &self,
        context: &Context,
        view: &Arc<View>,
    ) -> impl Future<Output = Result<Self::Seen, Status>> + Send;

    /// See [`Watched::Mark`].
    fn mark(&self, state: &State) -> Self::Mark;

    /// Whether nothing more happens to it by itself.
    fn has_ended(&self, state: &State) -> bool;

    /// Whether the caller still may see it.
    ///
    /// # Errors
    /// Who lacks which role where.
    fn check(&self, context: &Context, caller: &Caller, state: &State) -> Result<(), Status>;
}

/// Opens a watch; `interval_ms` is how often live figures are looked at, 0 as usual.
pub fn open<W: Watched>(
    context: &Arc<Context>,
    caller: Caller,
    message: W::Message,
    interval_ms: u32,
    watched: W,
) -> ReceiverStream<Result<W::Seen, Status>> {
    let (sender, receiver) = mpsc::channel(4);
    let interval = match interval_ms {
        0 => USUAL,
        millis => Duration::from_millis(u64::from(millis)).max(FASTEST),
    };
    let watch = Watch {
        context: context.clone(),
        caller,
        message,
        interval,
        watched,
        sender,
    };
    tokio::spawn(watch.run());
    ReceiverStream::new(receiver)
}

struct Watch<W: Watched> {
    context: Arc<Context>,
    caller: Caller,
    message: W::Message,
    interval: Duration,
    watched: W,
    sender: mpsc::Sender<Result<W::Seen, Status>>,
}

impl<W: Watched> Watch<W> {
    async fn run(self) {
        loop {
            let done = match relay::leader_channel(&self.context, &self.caller) {
                Some(channel) => self.pass_on(channel).await,
                None => self.look().await,
            };
            match done {
                Ok(true) => return,
                // The coordinator that passes this on finds the new leader; here nothing live is
                // seen any more.
                Ok(false) if self.caller.relayed => {
                    let moved = status::refusal(Reason::NoLeader, "another coordinator leads now");
                    self.sender.send(Err(moved)).await.ok();
                    return;
                }
                Ok(false) => {}
                Err(status) => {
                    self.sender.send(Err(status)).await.ok();
                    return;
                }
            }
            if self.sender.is_closed() || self.context.stop.is_cancelled() {
                return;
            }
            tokio::time::sleep(FASTEST).await;
        }
    }

    /// Passes on what the leader streams; true: it is all told.
    async fn pass_on(&self, channel: Channel) -> Result<bool, Status> {
        let request = relay::request_for(&self.caller, self.message.clone())?;
        let Some(answer) = relay::answered(W::open(channel, request).await)? else {
            return Ok(false);
        };
        let mut stream = answer.into_inner();
        let mut views = self.context.query.views();
        loop {
            tokio::select! {
                message = stream.message() => match message {
                    Ok(Some(seen)) => {
                        if self.sender.send(Ok(seen)).await.is_err() {
                            return Ok(true);
                        }
                    }
                    Ok(None) => {
                        let view = self.context.query.stale();
                        return Ok(self.watched.has_ended(&view.state));
                    }
                    Err(_) => return Ok(false),
                },
                changed = views.changed() => {
                    if changed.is_err() {
                        return Ok(true);
                    }
                    let view = views.borrow_and_update().clone();
                    self.check_caller(&view.state)?;
                }
                () = self.context.stop.cancelled() => return Err(stopping()),
                () = self.sender.closed() => return Ok(true),
            }
        }
    }

    /// A person who was removed, or has no role there any more, sees no more.
    fn check_caller(&self, state: &State) -> Result<(), Status> {
        self.caller
            .check_known(state)
            .map_err(|refused| status::refusal(refused.reason, refused.message))?;
        self.watched.check(&self.context, &self.caller, state)
    }

    /// Looks itself; true: it is all told.
    async fn look(&self) -> Result<bool, Status> {
        let mut views = self.context.query.views();
        let mut leadership = self.context.status.clone();
        let led = self.context.leads();
        if self.caller.relayed && !led {
            return Ok(false);
        }
        let mut timer = tokio::time::interval(self.interval);
        // The first look needs no tick.
        timer.reset();
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut last: Option<W::Seen> = None;
        loop {
            let view = views.borrow_and_update().clone();
            self.check_caller(&view.state)?;
            let shown = self.watched.look(&self.context, &view).await?;
            let is_over = self.watched.has_ended(&view.state);
            if last.as_ref() != Some(&shown) {
                last = Some(shown.clone());
                if self.sender.send(Ok(shown)).await.is_err() {
                    return Ok(true);
                }
            }
            if is_over {
                return Ok(true);
            }
            // Changes of other things wake it too; then only the record is compared.
            let mark = self.watched.mark(&view.state);
            loop {
                tokio::select! {
                    changed = views.changed() => {
                        if changed.is_err() {
                            return Ok(true);
                        }
                        let view = views.borrow_and_update().clone();
                        if self.check_caller(&view.state).is_err()
                            || self.watched.mark(&view.state) != mark
                        {
                            break;
                        }
                    }
                    _ = timer.tick() => break,
                    changed = leadership.changed() => {
                        if changed.is_err() {
                            return Ok(true);
                        }
                        if self.context.leads() != led
                            || relay::leader_channel(&self.context, &self.caller).is_some()
                        {
                            return Ok(false);
                        }
                    }
                    () = self.context.stop.cancelled() => return Err(stopping()),
                    () = self.sender.closed() => return Ok(true),
                }
            }
        }
    }
}

fn stopping() -> Status {
    status::refusal(Reason::ShuttingDown, "this coordinator is stopping")
}

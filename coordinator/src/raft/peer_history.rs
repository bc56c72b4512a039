//! History rows between members: sent to, and taken by, a member that gets a snapshot.
//!
//! The receiver asks for what lies behind its own last rows, so a transfer that broke off goes on
//! where it stood. Rows are written as they come, each event is checked against its hash and its
//! place in the audit chain, and the snapshot takes its place only when everything is durable.

use tidegate_coordinator_core::{Archived, Extent};
use tidegate_proto::peer::v1::{HistoryRequest, HistoryRow, HistoryRows, history_row};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::transport::PeerClients;
use crate::storage::history::read::Shipped;
use crate::storage::history::{HistoryError, HistoryStore, Tail};

/// About so many bytes travel in one message.
const PART_BYTES: usize = 256 * 1024;
/// After so many parts what came is made durable: a broken transfer goes on from there.
const SYNC_EVERY: usize = 64;

/// Rows on their way out.
pub(super) type Rows = ReceiverStream<Result<HistoryRows, Status>>;

fn failed(error: &dyn std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

/// Sends what the caller lacks.
pub(super) fn send(history: HistoryStore, request: &HistoryRequest) -> Rows {
    let event = (request.after_index, request.after_ordinal);
    let mut tail = Tail {
        event: (event != (0, 0)).then_some(event),
        hash: None,
        deployments: request.after_deployment,
    };
    let through = request.through;
    let (sender, receiver) = mpsc::channel(4);
    tokio::task::spawn_blocking(move || {
        loop {
            let part = match part(&history, &mut tail, through) {
                Ok(Some(part)) => Ok(part),
                Ok(None) => return,
                Err(error) => Err(failed(&error)),
            };
            let is_last = part.is_err();
            if sender.blocking_send(part).is_err() || is_last {
                return;
            }
        }
    });
    ReceiverStream::new(receiver)
}

/// The next message; nothing when all is sent.
fn part(
    history: &HistoryStore,
    tail: &mut Tail,
    through: u64,
) -> Result<Option<HistoryRows>, HistoryError> {
    let found = history.behind(*tail, through, PART_BYTES)?;
    for row in &found {
        *tail = tail.with(row.open()?.row());
    }
    let rows = found.into_iter().map(|row| HistoryRow {
        row: Some(match row {
            Shipped::Event(bytes) => history_row::Row::Event(bytes.into()),
            Shipped::Deployment(bytes) => history_row::Row::Deployment(bytes.into()),
        }),
    });
    let rows: Vec<HistoryRow> = rows.collect();
    Ok((!rows.is_empty()).then_some(HistoryRows { rows }))
}

fn open(rows: Vec<HistoryRow>) -> Result<Vec<Archived>, HistoryError> {
    let shipped = rows.into_iter().filter_map(|row| row.row);
    shipped
        .map(|row| match row {
            history_row::Row::Event(bytes) => Shipped::Event(bytes.to_vec()).open(),
            history_row::Row::Deployment(bytes) => Shipped::Deployment(bytes.to_vec()).open(),
        })
        .collect()
}

/// Fetches from member `from` what this node lacks of the history beside a snapshot that ends with
/// entry `through`, and makes it durable.
pub(super) async fn fetch(
    clients: &PeerClients,
    history: &HistoryStore,
    from: u64,
    extent: Extent,
    through: u64,
) -> Result<(), Status> {
    let asked = history.clone();
    let tail = tokio::task::spawn_blocking(move || asked.tail()).await;
    let tail = tail.map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;
    let (after_index, after_ordinal) = tail.event.unwrap_or_default();
    let request = HistoryRequest {
        envelope: Some(clients.envelope(from)),
        after_index,
        after_ordinal,
        after_deployment: tail.deployments,
        through,
    };
    let mut client = clients.client(from).map_err(|e| failed(&e))?;
    let mut stream = client.history(request).await?.into_inner();
    let mut count = 0;
    let mut parts = 0;
    while let Some(part) = stream.message().await? {
        parts += 1;
        count += part.rows.len();
        let history = history.clone();
        let work = move || {
            let rows = open(part.rows)?;
            history.take_over(rows.iter().map(Archived::row))?;
            if parts % SYNC_EVERY == 0 {
                history.sync()?;
            }
            Ok::<_, HistoryError>(())
        };
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;
    }
    let history = history.clone();
    let work = move || {
        history.sync()?;
        history.check(extent, through)
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;
    tracing::info!(rows = count, through, from, "the history is complete");
    Ok(())
}

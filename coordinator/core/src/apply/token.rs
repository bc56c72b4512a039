//! Join tokens, and newcomers who use them.

use std::sync::Arc;

use tidegate_shared::error::Reason;
use tidegate_shared::id::{Name, TokenId};
use tidegate_shared::spec::validate_labels;

use super::tx::Tx;
use super::{agent, people};
use crate::command::{Actor, CreateToken, Join, Outcome, Reply, TokenKind};
use crate::rejection::Rejection;
use crate::state::{Addresses, Member, NodeId, Token};

/// Makes a token; only a hash of its secret is kept.
pub(super) fn create(tx: &mut Tx<'_>, command: &CreateToken) -> Outcome {
    if tx.state.tokens.contains_key(&command.id) {
        return Err(Rejection::new(
            Reason::AlreadyExists,
            format!("there is a token {} already", command.id),
        ));
    }
    if command.expires_at <= tx.at {
        return Err(Rejection::new(
            Reason::InvalidRequest,
            format!("the token would have expired at {}", command.expires_at),
        ));
    }
    if !(1..=10_000).contains(&command.uses) {
        return Err(Rejection::new(
            Reason::InvalidRequest,
            format!("{} uses: want 1 to 10000", command.uses),
        ));
    }
    validate_labels(&command.labels)
        .into_result()
        .map_err(|errors| Rejection::fields("token", errors))?;
    let token = Token {
        kind: command.kind,
        secret_hash: command.secret_hash,
        labels: command.labels.clone(),
        created_at: tx.at,
        created_by: tx.actor.clone(),
        expires_at: command.expires_at,
        uses: command.uses,
        used: 0,
        name: command.name.clone(),
        roles: command.roles.clone(),
    };
    tx.state.tokens.insert(command.id, token);
    tx.note(
        "token_created",
        "token",
        command.id,
        format!(
            "a token for {} was made: {} uses until {}",
            kind_word(command.kind),
            command.uses,
            command.expires_at
        ),
    );
    Ok(Reply::Done)
}

const fn kind_word(kind: TokenKind) -> &'static str {
    match kind {
        TokenKind::Agent => "agents",
        TokenKind::User => "people",
        TokenKind::Coordinator => "coordinators",
    }
}

/// Takes a token back; who joined with it stays.
pub(super) fn delete(tx: &mut Tx<'_>, id: TokenId) -> Outcome {
    match tx.state.tokens.remove(&id) {
        Some(token) => {
            tx.note(
                "token_deleted",
                "token",
                id,
                format!("the token was taken back after {} uses", token.used),
            );
            Ok(Reply::Done)
        }
        None => Err(Rejection::new(
            Reason::NotFound,
            format!("there is no token {id}"),
        )),
    }
}

/// A newcomer uses a token. A wrong secret is answered like an unknown token.
pub(super) fn join(tx: &mut Tx<'_>, command: &Join) -> Outcome {
    let token = usable(tx, command)?;
    if let Some(bound) = &token.name
        && *bound != command.name
    {
        return Err(Rejection::new(
            Reason::PermissionDenied,
            format!(
                "this token is for \"{bound}\", not for \"{}\"",
                command.name
            ),
        ));
    }
    let bound = token.name.is_some();
    let node = match token.kind {
        TokenKind::Agent => {
            agent::admit(tx, command, &token.labels, bound)?;
            None
        }
        TokenKind::User => {
            admit_person(tx, &command.name, &token, bound)?;
            None
        }
        TokenKind::Coordinator => Some(admit_member(tx, command)?),
    };
    let used = Token {
        used: token.used.saturating_add(1),
        ..token.clone()
    };
    tx.state.tokens.insert(command.token, used);
    Ok(Reply::Joined {
        name: command.name.clone(),
        kind: token.kind,
        node,
    })
}

fn usable(tx: &Tx<'_>, command: &Join) -> Result<Token, Rejection> {
    let found = tx.state.tokens.get(&command.token);
    let Some(token) = found.filter(|token| token.secret_hash == command.secret_hash) else {
        return Err(Rejection::new(
            Reason::TokenUnknown,
            "this token is not one of this cluster, or was taken back",
        ));
    };
    if token.expires_at <= tx.at {
        return Err(Rejection::new(
            Reason::TokenExpired,
            format!("this token expired at {}", token.expires_at),
        ));
    }
    if token.used >= token.uses {
        return Err(Rejection::new(
            Reason::TokenUsedUp,
            format!("all {} uses of this token are used up", token.uses),
        ));
    }
    Ok(token.clone())
}

/// Refuses a taken name unless the token was made for just this name.
pub(super) fn check_name(
    kind: &str,
    name: &Name,
    taken: bool,
    bound: bool,
) -> Result<(), Rejection> {
    if taken && !bound {
        return Err(Rejection::new(
            Reason::AlreadyExists,
            format!(
                "{kind} \"{name}\" is in the cluster already: take another name, or use a token that was made for it (--name {name})"
            ),
        ));
    }
    Ok(())
}

fn admit_person(tx: &mut Tx<'_>, name: &Name, token: &Token, bound: bool) -> Result<(), Rejection> {
    let taken = tx.state.people.contains_key(name);
    check_name("person", name, taken, bound)?;
    people::admit(tx, name, token);
    Ok(())
}

fn admit_member(tx: &mut Tx<'_>, command: &Join) -> Result<NodeId, Rejection> {
    let addresses: Addresses = command.addresses.clone().ok_or_else(|| {
        Rejection::new(
            Reason::InvalidRequest,
            "a coordinator has to say where it listens",
        )
    })?;
    let Some(cluster) = tx.state.cluster.as_mut().map(Arc::make_mut) else {
        return Err(Rejection::new(
            Reason::InvalidRequest,
            "this cluster is not initialised",
        ));
    };
    let twin = cluster.members.iter().find(|(_, m)| m.name == command.name);
    if let Some((node, _)) = twin {
        return Err(Rejection::new(
            Reason::AlreadyExists,
            format!(
                "coordinator \"{}\" is a member already (node {node}): remove it first, it comes back under a new node id",
                command.name
            ),
        ));
    }
    let node = cluster.next_node;
    cluster.next_node = node.saturating_add(1);
    let member = Member {
        name: command.name.clone(),
        addresses,
        version: String::new(),
        level: cluster.level,
        joined_at: tx.at,
    };
    cluster.members.insert(node, member);
    let name = &command.name;
    tx.note(
        "member_joined",
        "member",
        node,
        format!("coordinator {name} joined as node {node}"),
    );
    Ok(node)
}

/// The person that an actor is.
pub(super) const fn person(actor: &Actor) -> Option<&Name> {
    match actor {
        Actor::User(name) => Some(name),
        Actor::System | Actor::Agent(_) | Actor::Coordinator(_) | Actor::Token(_) => None,
    }
}

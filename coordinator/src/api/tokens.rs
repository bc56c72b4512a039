//! `Tokens`: invitations to join. The secret is made here and shown to who asked; the log holds its
//! hash.

use std::sync::Arc;

use ring::hmac;
use tidegate_coordinator_core::RequestKey;
use tidegate_coordinator_core::command::{Command, CreateToken, DeleteToken, TokenKind};
use tidegate_proto::control::v1::tokens_server::Tokens;
use tidegate_proto::control::v1::{
    CreateTokenRequest, CreateTokenResponse, DeleteTokenRequest, DeleteTokenResponse,
    ListTokensRequest, ListTokensResponse,
};
use tidegate_shared::digest::Digest;
use tidegate_shared::id::TokenId;
use tidegate_shared::time::{Span, Timestamp};
use tidegate_shared::token::JoinToken;
use tonic::{Request, Response, Status};
use ulid::Ulid;

use super::authn::Caller;
use super::{Context, caller, convert, request_key, status};

const LONGEST: Span = Span::from_days(30);
const MOST_USES: u32 = 10_000;

/// The service.
pub struct TokensApi(pub Arc<Context>);

impl TokensApi {
    /// Id and secret of the token that a request asks for. They follow from who asks and the
    /// request's id under the cluster key, which every coordinator holds: a request that is
    /// repeated, here or elsewhere, gets the token of the first time.
    fn of_request(
        &self,
        caller: &Caller,
        request: RequestKey,
    ) -> Result<(TokenId, [u8; 32]), Status> {
        let (Some(identity), RequestKey::Client(request)) = (&caller.identity, request) else {
            return Err(status::internal(&"a token is asked for by nobody"));
        };
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.0.authority.key().reveal());
        let draw = |what: &str| -> [u8; 32] {
            let text = format!("tidegate token v1\n{what}\n{identity}\n{request}");
            let tag = hmac::sign(&key, text.as_bytes());
            let mut bytes = [0; 32];
            bytes.copy_from_slice(tag.as_ref());
            bytes
        };
        let mut random = [0; 16];
        random[6..].copy_from_slice(&draw("id")[..10]);
        let id = Ulid::from_parts(request.minted_at().millis(), u128::from_be_bytes(random));
        Ok((TokenId::new(id), draw("secret")))
    }
}

#[tonic::async_trait]
impl Tokens for TokensApi {
    async fn create(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let caller = caller(&request)?;
        let message = request.into_inner();
        let key = request_key(&message.request_id)?;
        let kind = convert::token_kind(&message.kind)?;
        let ttl = match message.ttl_ms {
            0 => Span::from_hours(1),
            millis if (1_000..=LONGEST.millis()).contains(&millis) => Span::from_millis(millis),
            _ => return Err(status::wrong_field("ttl_ms", "want 1s to 30d")),
        };
        let uses = match message.uses {
            0 => 1,
            uses if uses <= MOST_USES => uses,
            _ => return Err(status::wrong_field("uses", "want 1 to 10000")),
        };
        let name = match message.name.as_str() {
            "" if kind == TokenKind::User => {
                return Err(status::wrong_field(
                    "name",
                    "is missing: a token for a person names the person",
                ));
            }
            "" => None,
            text => Some(convert::name("name", text)?),
        };
        let labels = convert::labels(message.labels)?;
        let roles = convert::people::roles("roles", &message.roles)?;
        if !roles.is_empty() && kind != TokenKind::User {
            return Err(status::wrong_field("roles", "are for people only"));
        }
        let (id, secret) = self.of_request(&caller, key)?;
        let view = self.0.read().await?;
        let fingerprint: Digest = self.0.ca(&view.state)?.fingerprint();
        let token = JoinToken::new(id, secret, fingerprint);
        let answer = |expires_at: Timestamp| CreateTokenResponse {
            id: id.to_string(),
            token: token.reveal(),
            expires_at_ms: expires_at.millis(),
        };
        // The request is repeated: its answer got lost.
        if let Some(made) = view.state.tokens.get(&id)
            && (made.kind, made.uses, &made.name) == (kind, uses, &name)
            && (&made.labels, &made.roles) == (&labels, &roles)
        {
            return Ok(Response::new(answer(made.expires_at)));
        }
        let expires_at = view.state.at.max(self.0.now()) + ttl;
        let command = Command::CreateToken(CreateToken {
            id,
            kind,
            secret_hash: token.secret_hash(),
            labels,
            expires_at,
            uses,
            name,
            roles,
        });
        self.0.propose(caller.actor(), key, command).await?;
        Ok(Response::new(answer(expires_at)))
    }

    async fn list(
        &self,
        _request: Request<ListTokensRequest>,
    ) -> Result<Response<ListTokensResponse>, Status> {
        let view = self.0.read().await?;
        Ok(Response::new(ListTokensResponse {
            tokens: view
                .state
                .tokens
                .iter()
                .map(|(id, found)| convert::token(*id, found))
                .collect(),
        }))
    }

    async fn delete(
        &self,
        request: Request<DeleteTokenRequest>,
    ) -> Result<Response<DeleteTokenResponse>, Status> {
        let actor = caller(&request)?.actor();
        let message = request.into_inner();
        let command = Command::DeleteToken(DeleteToken {
            id: convert::token_id(&message.id)?,
        });
        self.0
            .propose(actor, request_key(&message.request_id)?, command)
            .await?;
        Ok(Response::new(DeleteTokenResponse {}))
    }
}

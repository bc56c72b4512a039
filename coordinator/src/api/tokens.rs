//! `Tokens`: invitations to join. The secret is drawn here and shown once; the log holds its hash.

use std::sync::Arc;

use tidegate_coordinator_core::command::{Command, CreateToken, DeleteToken, TokenKind};
use tidegate_proto::control::v1::tokens_server::Tokens;
use tidegate_proto::control::v1::{
    CreateTokenRequest, CreateTokenResponse, DeleteTokenRequest, DeleteTokenResponse,
    ListTokensRequest, ListTokensResponse,
};
use tidegate_shared::digest::Digest;
use tidegate_shared::id::TokenId;
use tidegate_shared::time::Span;
use tidegate_shared::token::JoinToken;
use tonic::{Request, Response, Status};

use super::{Context, caller, convert, request_key, status};
use crate::entropy;

const LONGEST: Span = Span::from_days(30);
const MOST_USES: u32 = 10_000;

/// The service.
pub struct TokensApi(pub Arc<Context>);

#[tonic::async_trait]
impl Tokens for TokensApi {
    async fn create(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let actor = caller(&request)?.actor();
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
        let internal = |error: entropy::EntropyError| status::internal(&error);
        let id = TokenId::new(entropy::ulid(self.0.clock.wall_ms()).map_err(internal)?);
        let secret: [u8; 32] = entropy::bytes().map_err(internal)?;
        let view = self.0.read().await?;
        let fingerprint: Digest = self.0.ca(&view.state)?.fingerprint();
        let token = JoinToken::new(id, secret, fingerprint);
        let expires_at = view.state.at.max(self.0.now()) + ttl;
        let command = Command::CreateToken(CreateToken {
            id,
            kind,
            secret_hash: token.secret_hash(),
            labels: convert::labels(message.labels)?,
            expires_at,
            uses,
            name,
        });
        self.0.propose(actor, key, command).await?;
        Ok(Response::new(CreateTokenResponse {
            id: id.to_string(),
            token: token.reveal(),
            expires_at_ms: expires_at.millis(),
        }))
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

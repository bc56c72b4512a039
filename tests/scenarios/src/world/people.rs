//! People with roles in a scenario. Stories without them are of a cluster whose people have none yet,
//! where everybody may do everything.

use tidegate_coordinator_core::Actor;
use tidegate_coordinator_core::command::{
    Command, CreateToken, Join, RaiseLevel, TokenKind, UpdateMember, UpdatePerson,
};
use tidegate_coordinator_core::people::{ROLES_LEVEL, in_force};
use tidegate_coordinator_core::state::Addresses;
use tidegate_shared::assignment::Facts;
use tidegate_shared::digest::Digest;
use tidegate_shared::id::{Name, TokenId};
use tidegate_shared::selector::Labels;
use tidegate_shared::spec::Role;
use tidegate_shared::time::Span;

use super::{World, admin};

impl World {
    pub(super) fn person(&mut self, name: &Name, roles: &[Role]) -> Result<(), String> {
        if !in_force(&self.state) {
            let level = ROLES_LEVEL;
            let member = UpdateMember {
                node: 1,
                addresses: Addresses::default(),
                version: "0.1.0".to_owned(),
                level,
            };
            self.must(Actor::System, Command::UpdateMember(member))?;
            self.must(admin()?, Command::RaiseLevel(RaiseLevel { level }))?;
        }
        if self.state.people.contains_key(name) {
            let update = UpdatePerson {
                name: name.clone(),
                roles: roles.to_vec(),
                labels: Labels::new(),
                expected_revision: None,
            };
            return self.ask(admin()?, Command::UpdatePerson(update));
        }
        self.serial += 1;
        let id = TokenId::derived(self.now, "scenario", self.serial, 2);
        let secret_hash = Digest::of(name.as_str().as_bytes());
        let token = CreateToken {
            id,
            kind: TokenKind::User,
            secret_hash,
            labels: Labels::new(),
            expires_at: self.now + Span::from_hours(1),
            uses: 1,
            name: Some(name.clone()),
            roles: roles.to_vec(),
        };
        self.must(admin()?, Command::CreateToken(token))?;
        let join = Join {
            token: id,
            secret_hash,
            name: name.clone(),
            facts: Facts::new(),
            addresses: None,
        };
        self.must(Actor::Token(id), Command::Join(join))
    }
}

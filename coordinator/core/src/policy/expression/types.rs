//! What expressions may know, and of which type it is.

/// What an expression is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A deployment: `application`, `release`, `scope`, `environment`, `user`, `now`.
    Deployment,
    /// A deployment that is about to be created: `strategy` too.
    Creation,
    /// An environment alone.
    Environment,
    /// A release alone.
    Release,
    /// A scope, without a deployment to it: `application`, `environment`, `scope`.
    Place,
    /// The answer of an HTTP request: `result`.
    HttpResult,
    /// The end of a program: `result`.
    CommandResult,
    /// The result of a query: `result`.
    QueryResult,
}

/// The type of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Type {
    Bool,
    Int,
    Uint,
    Double,
    Text,
    /// The value of a label: a text that is read as a number where one is wanted.
    Label,
    Timestamp,
    Duration,
    Null,
    List(Box<Type>),
    /// From texts to values.
    Map(Box<Type>),
    Object(Object),
    /// Not known before evaluation.
    Any,
}

/// Things with fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Object {
    Application,
    Release,
    Scope,
    Environment,
    User,
    Strategy,
    HttpResult,
    CommandResult,
    QueryResult,
}

impl Subject {
    pub(super) fn variable(self, name: &str) -> Option<Type> {
        let knows = match self {
            Self::Deployment => !matches!(name, "strategy" | "result"),
            Self::Creation => name != "result",
            Self::Environment => name == "environment",
            Self::Release => name == "release",
            Self::Place => matches!(name, "application" | "environment" | "scope"),
            Self::HttpResult | Self::CommandResult | Self::QueryResult => name == "result",
        };
        let object = match name {
            "application" => Object::Application,
            "release" => Object::Release,
            "scope" => Object::Scope,
            "environment" => Object::Environment,
            "user" => Object::User,
            "strategy" => Object::Strategy,
            "result" => match self {
                Self::HttpResult => Object::HttpResult,
                Self::CommandResult => Object::CommandResult,
                Self::QueryResult => Object::QueryResult,
                Self::Deployment
                | Self::Creation
                | Self::Environment
                | Self::Release
                | Self::Place => return None,
            },
            "now" => return knows.then_some(Type::Timestamp),
            _ => return None,
        };
        knows.then_some(Type::Object(object))
    }

    pub(super) const fn variables(self) -> &'static str {
        match self {
            Self::Deployment => "application, release, scope, environment, user and now",
            Self::Creation => "application, release, scope, environment, user, strategy and now",
            Self::Environment => "environment",
            Self::Release => "release",
            Self::Place => "application, environment and scope",
            Self::HttpResult | Self::CommandResult | Self::QueryResult => "result",
        }
    }
}

impl Object {
    pub(super) fn field(self, name: &str) -> Option<Type> {
        let labels = || Some(Type::Map(Box::new(Type::Label)));
        match (self, name) {
            (Self::Application | Self::Environment | Self::Scope | Self::User, "name") => {
                Some(Type::Text)
            }
            (Self::Application | Self::Release | Self::Scope | Self::Environment, "labels") => {
                labels()
            }
            (Self::Release, "version" | "name" | "notes" | "status" | "digest") => Some(Type::Text),
            (Self::Scope, "type" | "environment" | "application") => Some(Type::Text),
            (Self::Scope, "dimensions") => labels(),
            (Self::Scope, "instances_per_agent") => Some(Type::Int),
            (Self::Environment, "tier") => Some(Type::Int),
            (Self::User, "teams" | "roles") => Some(Type::List(Box::new(Type::Text))),
            (Self::Strategy, "name" | "kind" | "finalize") => Some(Type::Text),
            (Self::Strategy, "steps") => Some(Type::List(Box::new(Type::Double))),
            (Self::Strategy, "rollback_rules" | "checks") => Some(Type::Int),
            (Self::Strategy, "bake") => Some(Type::Duration),
            (Self::HttpResult, "status") | (Self::CommandResult, "exit_code") => Some(Type::Int),
            (Self::HttpResult | Self::CommandResult, "body") => Some(Type::Any),
            (Self::HttpResult, "text") | (Self::CommandResult, "output") => Some(Type::Text),
            (Self::QueryResult, "value") => Some(Type::Double),
            (Self::QueryResult, "values") => Some(Type::List(Box::new(Type::Double))),
            _ => None,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Application => "application",
            Self::Release => "release",
            Self::Scope => "scope",
            Self::Environment => "environment",
            Self::User => "user",
            Self::Strategy => "strategy",
            Self::HttpResult | Self::CommandResult | Self::QueryResult => "result",
        }
    }

    pub(super) const fn fields(self) -> &'static str {
        match self {
            Self::Application => "name and labels",
            Self::Release => "name, version, labels, notes, status and digest",
            Self::Scope => {
                "name, labels, type, application, environment, dimensions and instances_per_agent"
            }
            Self::Environment => "name, labels and tier",
            Self::User => "name, teams and roles",
            Self::Strategy => "name, kind, steps, rollback_rules, checks, finalize and bake",
            Self::HttpResult => "status, body and text",
            Self::CommandResult => "exit_code, output and body",
            Self::QueryResult => "value and values",
        }
    }
}

impl Type {
    pub(super) const fn is_number(&self) -> bool {
        matches!(self, Self::Int | Self::Uint | Self::Double)
    }

    pub(super) const fn is_text(&self) -> bool {
        matches!(self, Self::Text | Self::Label)
    }

    /// Whether values of both can be compared for equality.
    pub(super) fn meets(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any | Self::Null, _) | (_, Self::Any | Self::Null) => true,
            (one, other) if one.is_text() && other.is_text() => true,
            (one, other) if one.is_number() && other.is_number() => true,
            (Self::List(one), Self::List(other)) | (Self::Map(one), Self::Map(other)) => {
                one.meets(other)
            }
            (one, other) => one == other,
        }
    }

    pub(super) fn word(&self) -> String {
        match self {
            Self::Bool => "a truth value".to_owned(),
            Self::Int | Self::Uint | Self::Double => "a number".to_owned(),
            Self::Text => "a text".to_owned(),
            Self::Label => "the value of a label".to_owned(),
            Self::Timestamp => "a time".to_owned(),
            Self::Duration => "a length of time".to_owned(),
            Self::Null => "null".to_owned(),
            Self::List(_) => "a list".to_owned(),
            Self::Map(_) => "a map".to_owned(),
            Self::Object(object) => format!("the whole {}", object.name()),
            Self::Any => "anything".to_owned(),
        }
    }
}

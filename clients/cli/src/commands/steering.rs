//! What the verbs that steer a deployment and those that steer a group take: which one, why, at which
//! revision, whether to wait. They differ in how the one is named, which [`Named`] says.

use std::fmt::Debug;
use std::marker::PhantomData;

use clap::Args;
use tidegate_proto::control::v1::act_request::Verb;
use tidegate_shared::spec::parse_percent;
use tidegate_shared::weight::Weight;

use super::{ReasonArgs, RevisionArgs, WaitArgs};
use crate::errors::{Failure, Result};
use crate::follow::{Following, parse_timeout};

/// What is steered.
pub trait Named: Debug + Clone + Send + Sync + 'static {
    /// The argument that names one, as help shows it.
    const VALUE: &'static str;
    /// What may stand there.
    const HELP: &'static str;
    /// The command's word.
    const NOUN: &'static str;
    /// A reference for examples.
    const EXAMPLE: &'static str;
}

/// A deployment.
#[derive(Debug, Clone)]
pub struct Deployment;

/// A deployment group.
#[derive(Debug, Clone)]
pub struct Group;

impl Named for Deployment {
    const VALUE: &'static str = "DEPLOYMENT";
    const HELP: &'static str = "Id, short id, or scope";
    const NOUN: &'static str = "deployment";
    const EXAMPLE: &'static str = "web-prod";
}

impl Named for Group {
    const VALUE: &'static str = "GROUP";
    const HELP: &'static str = "Name, id or short id";
    const NOUN: &'static str = "group";
    const EXAMPLE: &'static str = "spring";
}

/// Which one.
#[derive(Debug, Args)]
pub struct ReferenceArgs<N: Named> {
    /// Which one.
    #[arg(value_name = N::VALUE, help = N::HELP)]
    pub reference: String,
    #[arg(skip)]
    named: PhantomData<N>,
}

/// Which one, and why.
#[derive(Debug, Args)]
pub struct ReasonedArgs<N: Named> {
    /// Which one.
    #[command(flatten)]
    of: ReferenceArgs<N>,
    /// Why.
    #[command(flatten)]
    why: ReasonArgs,
}

/// Which one, why, and at which revision.
#[derive(Debug, Args)]
pub struct ActArgs<N: Named> {
    /// Which one, and why.
    #[command(flatten)]
    reasoned: ReasonedArgs<N>,
    /// At which revision.
    #[command(flatten)]
    expected: RevisionArgs,
}

/// Which one, why, and whether to wait.
#[derive(Debug, Args)]
pub struct ActWaitArgs<N: Named> {
    /// Which one.
    #[command(flatten)]
    pub act: ActArgs<N>,
    /// Whether to wait.
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// What to promote.
#[derive(Debug, Args)]
pub struct PromoteArgs<N: Named> {
    /// Which one.
    #[command(flatten)]
    pub act: ActArgs<N>,
    /// End all steps, not only the present one
    #[arg(long)]
    full: bool,
}

/// How much traffic.
#[derive(Debug, Args)]
pub struct TrafficArgs<N: Named> {
    /// Which one.
    #[command(flatten)]
    pub act: ActArgs<N>,
    /// Share of the new version in per cent: 0 to 100, at most two decimals
    #[arg(value_name = "PERCENT")]
    percent: String,
}

/// What to watch.
#[derive(Debug, Args)]
pub struct WatchArgs<N: Named> {
    /// Which one.
    #[command(flatten)]
    of: ReferenceArgs<N>,
    /// End after so long with exit status 6
    #[arg(
        long,
        value_name = "SPAN",
        default_value = "0s",
        hide_default_value = true
    )]
    timeout: String,
}

/// Which of those that are, or were, under way.
#[derive(Debug, Args)]
pub struct UnderWayArgs {
    /// Only those of this application
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub application: String,
    /// Only those that have not ended
    #[arg(long)]
    pub unfinished: bool,
    /// At most so many; 0: all
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub limit: usize,
}

impl<N: Named> ReasonedArgs<N> {
    /// Which one.
    pub fn reference(&self) -> &str {
        &self.of.reference
    }

    /// Why; may be empty.
    pub fn reason(&self) -> String {
        self.why.reason.clone()
    }
}

impl<N: Named> ActArgs<N> {
    /// Which one.
    pub fn reference(&self) -> &str {
        self.reasoned.reference()
    }

    /// Why; may be empty.
    pub fn reason(&self) -> String {
        self.reasoned.reason()
    }

    /// The revision that it must be at; 0: any.
    pub const fn revision(&self) -> u64 {
        self.expected.revision
    }
}

impl<N: Named> PromoteArgs<N> {
    /// The verb that is meant.
    pub const fn verb(&self) -> Verb {
        if self.full {
            Verb::PromoteFull
        } else {
            Verb::Promote
        }
    }
}

impl<N: Named> TrafficArgs<N> {
    /// The share that is wanted.
    ///
    /// # Errors
    /// It is none.
    pub fn share(&self) -> Result<Weight> {
        parse_percent(&self.percent).ok_or_else(|| {
            Failure::usage(format!(
                "\"{}\" is not a share of traffic: want 0 to 100 with at most two decimals",
                self.percent
            ))
            .hint(format!(
                "for example `tidegate {} traffic {} 25`",
                N::NOUN,
                N::EXAMPLE
            ))
        })
    }
}

impl<N: Named> WatchArgs<N> {
    /// Which one.
    pub fn reference(&self) -> &str {
        &self.of.reference
    }

    /// How to watch.
    ///
    /// # Errors
    /// The time limit is no length of time.
    pub fn following(&self) -> Result<Following> {
        Ok(Following {
            timeout: parse_timeout(&self.timeout)?,
            picture: true,
        })
    }
}

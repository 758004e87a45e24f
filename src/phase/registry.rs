//! Job types without their Rust types, and all of those that a queue has. L0.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::config;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Plan;
use crate::phase::{Handler, PhaseSpec, Planner};
use crate::retry::RetryPolicy;

/// A registered job type without its Rust types.
pub(crate) struct TypeDef {
    pub(crate) name: Arc<str>,
    pub(super) phases: Phases,
    pub(crate) retry: RetryPolicy,
    pub(crate) deadline: Option<Duration>,
    pub(crate) max_crashes: Option<u32>,
    pub(crate) concurrency: Option<u32>,
}

pub(super) enum Phases {
    Fixed {
        specs: Vec<PhaseSpec>,
        handlers: Vec<Handler>,
    },
    Planned {
        planner: Planner,
        handler: Handler,
        /// It was given a fixed phase too.
        is_mixed: bool,
    },
}

/// The phases of one job, ready to be run.
#[derive(Clone)]
pub(crate) struct Resolved {
    pub(crate) plan: Plan,
    pub(crate) specs: Arc<[PhaseSpec]>,
    pub(crate) retry: RetryPolicy,
}

impl TypeDef {
    /// Whoever wrote it is done: phases with tries of their own get the policy that the type has in the end.
    pub(super) fn finish(mut self) -> TypeDef {
        if let Phases::Fixed { specs, .. } = &mut self.phases {
            for spec in specs {
                spec.retry = spec
                    .max_attempts
                    .map(|max| self.retry.clone().max_attempts(max));
            }
        }
        self
    }

    /// The fixed plan, if it has one.
    pub(crate) fn fixed_plan(&self) -> Option<Plan> {
        match &self.phases {
            Phases::Fixed { specs, .. } => {
                Some(specs.iter().map(|spec| spec.name.clone()).collect())
            }
            Phases::Planned { .. } => None,
        }
    }

    /// The phases of a job with this input. Calls the user's `plan`, so no lock may be held.
    pub(crate) fn resolve(&self, input: &str) -> Result<Resolved> {
        let (specs, retry) = match &self.phases {
            Phases::Fixed { specs, .. } => (specs.clone(), self.retry.clone()),
            Phases::Planned { planner, .. } => {
                let plan = planner(input)?;
                (
                    plan.phases,
                    plan.retry.unwrap_or_else(|| self.retry.clone()),
                )
            }
        };
        let plan: Plan = specs.iter().map(|spec| spec.name.clone()).collect();
        config::check_plan(&self.name, &plan)?;
        if self.is_planned() {
            let own = specs.iter().filter_map(|spec| spec.retry.as_ref());
            for policy in own.chain([&retry]) {
                let checked = policy.validate(&format!("job type {:?}", self.name));
                checked.map_err(|error| Error::new(ErrorKind::InvalidJob, error.to_string()))?;
            }
        }
        Ok(Resolved {
            plan,
            specs: specs.into(),
            retry,
        })
    }

    pub(crate) fn is_planned(&self) -> bool {
        matches!(self.phases, Phases::Planned { .. })
    }

    pub(crate) fn handler(&self, phase_index: usize) -> Option<&Handler> {
        match &self.phases {
            Phases::Fixed { handlers, .. } => handlers.get(phase_index),
            Phases::Planned { handler, .. } => Some(handler),
        }
    }

    fn validate(&self) -> Result<()> {
        let invalid = |error: Error| Error::new(ErrorKind::InvalidConfig, error.to_string());
        config::check_name("job type", &self.name).map_err(invalid)?;
        let owner = format!("job type {:?}", self.name);
        self.retry.validate(&owner)?;
        if self.concurrency == Some(0) {
            let problem = format!(
                "{owner}: concurrency is 0, so that no job could run: pause the type instead"
            );
            return Err(Error::new(ErrorKind::InvalidConfig, problem));
        }
        if let Phases::Planned { is_mixed: true, .. } = &self.phases {
            let problem = format!("{owner}: its phases are planned, and one was added by `phase`");
            return Err(Error::new(ErrorKind::InvalidConfig, problem));
        }
        if let Phases::Fixed { specs, .. } = &self.phases {
            let plan: Vec<_> = specs.iter().map(|spec| spec.name.clone()).collect();
            config::check_plan(&self.name, &plan).map_err(invalid)?;
            for spec in specs {
                if let Some(retry) = &spec.retry {
                    retry.validate(&format!("{owner}: phase {:?}", spec.name.name))?;
                }
            }
        }
        Ok(())
    }
}

/// The job types of a queue, by name.
#[derive(Default)]
pub(crate) struct Registry(HashMap<Arc<str>, Arc<TypeDef>>);

impl Registry {
    pub(crate) fn add(&mut self, def: TypeDef) -> Result<()> {
        def.validate()?;
        let name = def.name.clone();
        match self.0.insert(name.clone(), Arc::new(def)) {
            None => Ok(()),
            Some(_) => {
                let problem = format!("job type {name:?} is registered twice: names must differ");
                Err(Error::new(ErrorKind::InvalidConfig, problem))
            }
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Arc<TypeDef>> {
        self.0.get(name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<TypeDef>> {
        self.0.values()
    }
}

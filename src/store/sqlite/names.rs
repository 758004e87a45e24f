//! Job types and plans by number: read once, remembered. L2.
//!
//! A number that is committed never changes its meaning, so remembering is safe; numbers given out in a transaction that was
//! rolled back must be forgotten, which their owner does.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension};

use crate::error::Result;
use crate::event::Plan;
use crate::job::PhaseName;
use crate::store::sqlite::errors::{self, Context};

const SELECT_TYPE_NAME: &str = "SELECT name FROM job_type WHERE id = ?1";
const SELECT_PLAN: &str = "SELECT phases FROM plan WHERE id = ?1";

#[derive(Default)]
pub(super) struct Names {
    types: HashMap<i64, Arc<str>>,
    type_ids: HashMap<Arc<str>, i64>,
    plans: HashMap<i64, Plan>,
    plan_ids: HashMap<Plan, i64>,
}

/// Computed plans can be many: beyond this many they are read again.
const PLANS_MAX: usize = 1024;

impl Names {
    pub(super) fn type_name(&mut self, conn: &Connection, id: i64) -> Result<Arc<str>> {
        if let Some(name) = self.types.get(&id) {
            return Ok(name.clone());
        }
        let name = text(conn, SELECT_TYPE_NAME, id)?
            .ok_or_else(|| errors::corrupt("job_type", id, "id", "of no row"))?;
        let name: Arc<str> = name.into();
        self.remember_type(id, name.clone());
        Ok(name)
    }

    pub(super) fn type_id(&self, name: &str) -> Option<i64> {
        self.type_ids.get(name).copied()
    }

    pub(super) fn remember_type(&mut self, id: i64, name: Arc<str>) {
        self.types.insert(id, name.clone());
        self.type_ids.insert(name, id);
    }

    /// The phases of a plan; of plan 0, which nobody made, none.
    pub(super) fn plan(&mut self, conn: &Connection, id: i64) -> Result<Plan> {
        if id == 0 {
            return Ok(Arc::new([]));
        }
        if let Some(plan) = self.plans.get(&id) {
            return Ok(plan.clone());
        }
        let phases = text(conn, SELECT_PLAN, id)?
            .ok_or_else(|| errors::corrupt("plan", id, "id", "of no row"))?;
        let phases: Vec<PhaseName> = serde_json::from_str(&phases)
            .map_err(|_| errors::corrupt("plan", id, "phases", phases))?;
        let plan: Plan = phases.into();
        self.remember_plan(id, plan.clone());
        Ok(plan)
    }

    pub(super) fn plan_id(&self, plan: &Plan) -> Option<i64> {
        self.plan_ids.get(plan).copied()
    }

    pub(super) fn remember_plan(&mut self, id: i64, plan: Plan) {
        if self.plans.len() >= PLANS_MAX {
            self.plans.clear();
            self.plan_ids.clear();
        }
        self.plans.insert(id, plan.clone());
        self.plan_ids.insert(plan, id);
    }
}

fn text(conn: &Connection, sql: &str, id: i64) -> Result<Option<String>> {
    conn.prepare_cached(sql)
        .and_then(|mut statement| statement.query_row([id], |row| row.get(0)).optional())
        .map_err(|error| errors::map(error, Context::Read))
}

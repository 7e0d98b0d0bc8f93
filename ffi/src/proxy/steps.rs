//! For tests: changes of one listener that leave the others unchanged.

use super::*;

impl Proxy {
    /// Opens a listener; its number.
    pub fn add_listener(&self, settings: Settings, ports: Vec<Wanted>) -> Result<i32> {
        let mut plans = self.plans();
        let (trust, destinations) = (None, Arc::default());
        plans.push(Plan { id: 0, settings, trust, destinations, ports });
        let ids = self.reconfigure(plans, self.budgets(), Duration::ZERO)?;
        Ok(ids.last().map_or(0, |id| *id as i32))
    }

    pub fn change_listener(&self, id: u32, settings: Settings, ports: Vec<Wanted>) -> Result<()> {
        self.change_plan(id, |plan| (plan.settings, plan.ports) = (settings, ports))
    }

    pub fn set_trust(&self, id: u32, records: &[TrustRecord]) -> Result<()> {
        let trust = trust_of(records)?;
        self.change_plan(id, |plan| plan.trust = Some(trust))
    }

    pub fn close_listener(&self, id: u32, grace: Duration) -> Result<()> {
        self.find(id)?;
        let mut plans = self.plans();
        plans.retain(|plan| plan.id != id);
        self.reconfigure(plans, self.budgets(), grace).map(|_| ())
    }

    fn change_plan(&self, id: u32, change: impl FnOnce(&mut Plan)) -> Result<()> {
        self.find(id)?;
        let mut plans = self.plans();
        if let Some(plan) = plans.iter_mut().find(|plan| plan.id == id) {
            change(plan);
        }
        self.reconfigure(plans, self.budgets(), Duration::ZERO).map(|_| ())
    }

    pub fn set_budgets(&self, budgets: Budgets) -> Result<()> {
        self.reconfigure(self.plans(), budgets, Duration::ZERO).map(|_| ())
    }

    /// Those in force, or for a first listener some.
    pub fn budgets(&self) -> Budgets {
        let snapshot = self.table.snapshot();
        if snapshot.listeners.is_empty() {
            Budgets::FOR_TESTS
        } else {
            snapshot.budgets
        }
    }

    /// What there is, as a plan that changes nothing.
    fn plans(&self) -> Vec<Plan> {
        let snapshot = self.table.snapshot();
        let plan = |listener: &Arc<Listener>| Plan {
            id: listener.id,
            settings: listener.settings.clone(),
            trust: listener.trust.clone(),
            destinations: listener.destinations.clone(),
            ports: listener.ports.iter().map(|port| Wanted::of(port)).collect(),
        };
        snapshot.listeners.iter().map(plan).collect()
    }
}

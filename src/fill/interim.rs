//! Interim answers on their way from a source to those who wait for the final one.

use super::Filling;
use crate::cache::{FlightKey, Landed};
use crate::flight::{Audience, Fill};
use crate::group::Group;
use crate::semantics::forward::stays_inside;
use crate::source::{Interim, InterimSink};

impl Filling {
    /// Where interim answers go: to all readers, but those to a request with credentials to its own sender alone, because
    /// nothing says yet whether what they hint at may be shared.
    pub(super) fn flight_sink<'a>(&'a self, fill: &'a Fill<FlightKey, Landed>) -> IntoFlight<'a> {
        let personal = self.request.authorization || self.request.forwarded.contains("cookie");
        IntoFlight { fill, audience: if personal { Audience::Causer } else { Audience::All }, group: &self.group }
    }
}

/// Puts interim answers into a flight.
pub(super) struct IntoFlight<'a> {
    fill: &'a Fill<FlightKey, Landed>,
    audience: Audience,
    group: &'a Group,
}

impl InterimSink for IntoFlight<'_> {
    fn hear(&self, interim: Interim) {
        // What is for caches stays inside, and what is left out of shared answers is left out here.
        let fields = interim.fields.without(|name| stays_inside(name) || name.eq_ignore_ascii_case("set-cookie"));
        match self.fill.interim(Interim { fields, ..interim }, self.audience) {
            true => self.group.stats.interims.increment(),
            false => self.group.stats.interims_dropped.increment(),
        }
    }
}

//! What one poll says to a plug, in either dialect: which questions, in which order, and what is done with a refusal.
//!
//! Owns what is remembered of a plug between polls beside its connection. Promises that a plug is asked for nothing that
//! it has not said it can; that nothing is returned before the MAC that answers was compared with the one expected; that a
//! plug which takes no batches is never sent another one; and that a poll has a bounded number of questions.

use serde_json::Value;

use super::line::{Call, Line, Question};
use super::measured::Measured;
use super::smart::{self, Child, Components, Method, Source, Stamp};
use super::{Answer, PollError, Stream, Transport, iot};
use crate::reading::{ChildId, DeviceId, Label, MAX_OUTLETS, Mac, PlugFacts, Protocol, Relay};

/// Who must answer. Learnt from the first answer when it is not known.
#[derive(Clone, Copy, Debug)]
pub struct Expected(pub Option<Mac>);

impl Expected {
    fn check(&mut self, facts: &PlugFacts) -> Result<(), PollError> {
        match self.0 {
            Some(expected) if expected != facts.mac => {
                Err(PollError::WrongDevice { expected, found: Box::new(facts.clone()) })
            }
            _ => {
                self.0 = Some(facts.mac);
                Ok(())
            }
        }
    }
}

/// What is remembered of a plug that speaks IOT.
#[derive(Debug, Default)]
pub struct Iot {
    /// Whether it was found to have a meter and a single outlet: then one exchange asks for everything.
    single_meter: bool,
}

const NO_SYSINFO: PollError = PollError::Missing { what: "system.get_sysinfo" };
const NO_METER: PollError = PollError::Missing { what: "emeter.get_realtime" };

/// One poll's ends: the line, the call, who is expected and how it is spoken to.
pub struct Ends<'a, 'b, S: Stream, T> {
    /// The way to the plug.
    pub line: &'a mut Line<S>,
    /// This poll.
    pub call: Call<'b, T>,
    /// Who must answer.
    pub expected: &'a mut Expected,
    /// Noted in the facts.
    pub protocol: Protocol,
    /// See [`Stamp::terminal`].
    pub terminal: &'a str,
}

impl Iot {
    /// Asks the plug who it is and what each of its outlets measures.
    ///
    /// # Errors
    /// [`PollError`].
    pub async fn poll<S, T>(&mut self, mut ends: Ends<'_, '_, S, T>) -> Result<Answer, PollError>
    where
        S: Stream,
        T: Transport<Stream = S>,
    {
        // Until a plug has said that it has a meter, only `system` is asked.
        let first = if self.single_meter { iot::SYSINFO_AND_METER } else { iot::SYSINFO };
        let mut reply = self.ask(&mut ends, Question::the_same(first)).await?;
        let mut sysinfo = reply.sysinfo.take().ok_or(NO_SYSINFO)?;
        let single_meter = sysinfo.facts.has_meter && sysinfo.facts.outlets.is_empty();
        if single_meter && !self.single_meter {
            reply = self.ask(&mut ends, Question::the_same(iot::SYSINFO_AND_METER)).await?;
            sysinfo = reply.sysinfo.take().ok_or(NO_SYSINFO)?;
        }
        self.single_meter = single_meter;
        let clock = ends.call.clock();
        let mut answer = Answer { signal: sysinfo.signal, ..Answer::of(sysinfo.facts) };
        if single_meter {
            let relay = sysinfo.relays.first().copied().flatten();
            let measured = reply.measured.ok_or(NO_METER)?;
            answer.take(DeviceId::plug(answer.facts.mac), measured, relay, clock);
        } else if answer.facts.has_meter {
            let outlets: Vec<_> = answer.facts.metered_ids().zip(answer.facts.outlets.clone()).collect();
            for ((id, outlet), relay) in outlets.into_iter().zip(sysinfo.relays) {
                let question = Question {
                    plain: &iot::outlet_meter(&outlet.child),
                    introducing: &iot::sysinfo_and_outlet_meter(&outlet.child),
                };
                let measured = self.ask(&mut ends, question).await.and_then(|reply| reply.measured.ok_or(NO_METER));
                if !answer.take_outlet(id, measured, relay, clock) {
                    break;
                }
            }
        }
        Ok(answer)
    }

    /// One question and its answer. From a peer that has not said who it is, nothing is believed before that is known.
    async fn ask<S, T>(
        &mut self,
        ends: &mut Ends<'_, '_, S, T>,
        question: Question<'_>,
    ) -> Result<iot::Reply, PollError>
    where
        S: Stream,
        T: Transport<Stream = S>,
    {
        let heard = ends.line.ask(&mut ends.call, question).await?;
        let mut reply = iot::parse(&heard.payload);
        let checked = match &mut reply {
            Ok(iot::Reply { sysinfo: Some(sysinfo), .. }) => {
                sysinfo.facts.protocol = ends.protocol;
                ends.expected.check(&sysinfo.facts)
            }
            Ok(_) if heard.is_new => Err(NO_SYSINFO),
            Ok(_) => Ok(()),
            Err(PollError::Refused { .. }) if !heard.is_new => Ok(()), // a clear answer
            Err(error) => Err(error.clone()),
        };
        if checked.is_err() {
            ends.line.forget();
            self.single_meter &= !matches!(checked, Err(PollError::WrongDevice { .. }));
        }
        checked?;
        reply
    }
}

/// What is remembered of a plug that speaks SMART.
#[derive(Debug, Default)]
pub struct Smart {
    /// What it can do, and with which firmware it said so.
    known: Option<Known>,
    /// Whether it takes batches.
    batches: Batches,
}

#[derive(Debug)]
struct Known {
    firmware: Label,
    components: Components,
    /// Whether it measures, itself or in its outlets.
    has_meter: bool,
    /// Where each outlet's values come from, once that was found out; one for a plug with a single outlet.
    sources: Vec<Option<Source>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Batches {
    #[default]
    Untried,
    Taken,
    Refused,
}

impl Smart {
    /// Asks the plug who it is and what each of its outlets measures.
    ///
    /// # Errors
    /// [`PollError`].
    pub async fn poll<S, T>(&mut self, mut ends: Ends<'_, '_, S, T>) -> Result<Answer, PollError>
    where
        S: Stream,
        T: Transport<Stream = S>,
    {
        let first = match &self.known {
            None => vec![Method::Info],
            Some(known) if known.components.children => vec![Method::Info, Method::Children(0)],
            Some(known) => {
                let source = known.sources.first().copied().flatten().filter(|_| known.has_meter);
                std::iter::once(Method::Info).chain(source.map(Method::Meter)).collect()
            }
        };
        let mut said = self.ask_all(&mut ends, &first).await?;
        let mut info = smart::info(&said.take(Method::Info)?, ends.protocol)?;
        if let Err(error) = ends.expected.check(&info.facts) {
            ends.line.forget();
            self.known = None;
            return Err(error);
        }
        if self.known.as_ref().is_none_or(|known| known.firmware != info.facts.firmware) {
            self.negotiate(&mut ends, info.facts.firmware.clone()).await?;
            said = Said::default(); // what was asked before was asked of other firmware
        }
        let Some(Known { components, has_meter, .. }) = self.known else {
            return Err(PollError::Missing { what: "component_nego" });
        };
        info.facts.has_meter = has_meter;
        if components.children {
            let outlets = self.outlets(&mut ends, said.take(Method::Children(0)).ok()).await?;
            info.facts.outlets = outlets.iter().map(|outlet| outlet.facts.clone()).collect();
            return self.poll_strip(&mut ends, info, &outlets).await;
        }
        let clock = ends.call.clock();
        let mut answer = Answer { signal: info.signal, ..Answer::of(info.facts) };
        if has_meter {
            let measured = self.measure(&mut ends, 0, None, said).await?;
            answer.take(DeviceId::plug(answer.facts.mac), measured, info.relay, clock);
        }
        Ok(answer)
    }

    async fn poll_strip<S, T>(
        &mut self,
        ends: &mut Ends<'_, '_, S, T>,
        info: smart::Info,
        outlets: &[Child],
    ) -> Result<Answer, PollError>
    where
        S: Stream,
        T: Transport<Stream = S>,
    {
        let clock = ends.call.clock();
        let mut answer = Answer { signal: info.signal, ..Answer::of(info.facts) };
        let ids: Vec<_> = answer.facts.metered_ids().collect();
        for ((id, outlet), n) in ids.into_iter().zip(outlets).zip(0..) {
            let measured = self.measure(ends, n, Some(&outlet.facts.child), Said::default()).await;
            if !answer.take_outlet(id, measured, outlet.relay, clock) {
                break;
            }
        }
        Ok(answer)
    }

    /// Learns what the plug can do.
    async fn negotiate<S, T>(&mut self, ends: &mut Ends<'_, '_, S, T>, firmware: Label) -> Result<(), PollError>
    where
        S: Stream,
        T: Transport<Stream = S>,
    {
        self.known = None;
        self.batches = Batches::Untried;
        let components = smart::components(&ask(ends, Method::Components, None).await?);
        let mut has_meter = components.energy;
        if components.children && !has_meter {
            // The strip itself says nothing of meters; its outlets may.
            has_meter = match ask(ends, Method::ChildComponents(0), None).await {
                Ok(children) => smart::has_metered_child(&children),
                Err(PollError::Refused { .. }) => false,
                Err(error) => return Err(error),
            };
        }
        self.known = Some(Known { firmware, components, has_meter, sources: Vec::new() });
        Ok(())
    }

    /// All of a strip's outlets, in the order of the strip. `first` is the list's first page where that is there already.
    async fn outlets<S, T>(
        &mut self,
        ends: &mut Ends<'_, '_, S, T>,
        first: Option<Value>,
    ) -> Result<Vec<Child>, PollError>
    where
        S: Stream,
        T: Transport<Stream = S>,
    {
        let mut page = match first {
            Some(first) => first,
            None => ask(ends, Method::Children(0), None).await?,
        };
        let mut outlets: Vec<Child> = Vec::new();
        loop {
            let smart::Children { page: more, sum } = smart::children(&page)?;
            let before = outlets.len();
            for child in more {
                if !outlets.iter().any(|known| known.facts.child == child.facts.child) {
                    outlets.push(child);
                }
            }
            if outlets.len() > MAX_OUTLETS {
                return Err(PollError::TooManyOutlets);
            }
            // A page that brings nothing new is the last, whatever the sum says.
            if outlets.len() >= sum || outlets.len() == before {
                return Ok(smart::in_order(outlets));
            }
            page = ask(ends, Method::Children(outlets.len()), None).await?;
        }
    }

    /// What outlet `n` measures, from the best source it has. Which that is, is found out once; while that one is not to
    /// be had, the next ones fill in.
    async fn measure<S, T>(
        &mut self,
        ends: &mut Ends<'_, '_, S, T>,
        n: usize,
        child: Option<&ChildId>,
        mut said: Said,
    ) -> Result<Measured, PollError>
    where
        S: Stream,
        T: Transport<Stream = S>,
    {
        let known = self.known.as_ref().and_then(|known| known.sources.get(n).copied().flatten());
        let mut source = known.unwrap_or(Source::Emeter);
        loop {
            let answered = match said.take(Method::Meter(source)) {
                Err(PollError::Missing { .. }) => ask(ends, Method::Meter(source), child).await,
                there => there,
            };
            let measured = answered.and_then(|value| smart::measured(source, &value));
            let is_lacking = match &measured {
                Err(PollError::Refused { code, .. }) => smart::is_not_available(*code),
                Err(PollError::Missing { .. }) => true,
                _ => false,
            };
            if is_lacking && let Some(next) = source.next() {
                source = next;
                continue;
            }
            // Once it was found, the source stays: a plug that has lost its clock, say, gets it back.
            if let (Ok(_), None, Some(plug)) = (&measured, known, &mut self.known) {
                let sources = &mut plug.sources;
                sources.resize(sources.len().max(n.saturating_add(1)), None);
                sources.get_mut(n).into_iter().for_each(|slot| *slot = Some(source));
            }
            return measured;
        }
    }

    /// Asks for several things: in one batch where the plug takes batches, and singly what the batch did not bring.
    async fn ask_all<S, T>(&mut self, ends: &mut Ends<'_, '_, S, T>, methods: &[Method]) -> Result<Said, PollError>
    where
        S: Stream,
        T: Transport<Stream = S>,
    {
        let mut said = Said::default();
        let mut given_up = None;
        if methods.len() > 1 && self.batches != Batches::Refused {
            let stamp = Stamp { time: ends.call.clock().wall(), terminal: ends.terminal };
            let batch = smart::batch(methods, stamp);
            let asked = ends.line.ask(&mut ends.call, Question::the_same(&batch)).await;
            match asked.and_then(|heard| smart::results(&heard.payload)) {
                Ok(parts) => {
                    self.batches = Batches::Taken;
                    said.0 = parts;
                }
                Err(PollError::Refused { code, .. }) if smart::is_no_batch(code) => self.batches = Batches::Refused,
                // A plug that has never answered a batch may be one that never will: whether it is there at all, a
                // single question tells.
                Err(error @ (PollError::Timeout { .. } | PollError::Missing { .. } | PollError::Closed))
                    if self.batches == Batches::Untried =>
                {
                    given_up = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        for method in methods {
            if said.has(*method) {
                continue;
            }
            match ask(ends, *method, None).await {
                Ok(value) => said.0.push(smart::Part { name: method.name().to_owned(), result: Ok(value) }),
                Err(error @ PollError::Refused { .. }) => {
                    said.0.push(smart::Part { name: method.name().to_owned(), result: Err(error) })
                }
                Err(error) => return Err(given_up.unwrap_or(error)),
            }
            if given_up.take().is_some() {
                self.batches = Batches::Refused;
            }
        }
        Ok(said)
    }
}

/// Answers to several methods.
#[derive(Default)]
struct Said(Vec<smart::Part>);

impl Said {
    /// Whether there is an answer. One that says "not available" is one.
    fn has(&self, method: Method) -> bool {
        self.0.iter().any(|part| part.name == method.name())
    }

    /// The answer to `method`, once; [`PollError::Missing`] when there is none.
    fn take(&mut self, method: Method) -> Result<Value, PollError> {
        let at = self.0.iter().position(|part| part.name == method.name());
        at.map_or(Err(PollError::Missing { what: method.name() }), |at| self.0.swap_remove(at).result)
    }
}

/// One question, of the plug or one of its outlets.
async fn ask<S, T>(ends: &mut Ends<'_, '_, S, T>, method: Method, child: Option<&ChildId>) -> Result<Value, PollError>
where
    S: Stream,
    T: Transport<Stream = S>,
{
    let stamp = Stamp { time: ends.call.clock().wall(), terminal: ends.terminal };
    let request = match child {
        None => smart::single(method, stamp),
        Some(child) => smart::of_child(child, method, stamp),
    };
    let heard = ends.line.ask(&mut ends.call, Question::the_same(&request)).await?;
    match child {
        None => smart::result(&heard.payload),
        Some(_) => smart::child_result(&heard.payload),
    }
}

impl Answer {
    fn of(facts: PlugFacts) -> Self {
        Self {
            facts,
            signal: None,
            readings: Vec::new(),
            implausible: Vec::new(),
            silent: Vec::new(),
            broken_off: None,
        }
    }

    fn take(&mut self, id: DeviceId, measured: Measured, relay: Option<Relay>, clock: &dyn crate::clock::Clock) {
        let Measured { power, voltage, current, counter, implausible } = measured;
        self.implausible.extend(implausible.into_iter().map(|value| (id, value)));
        if let Some(power) = power {
            let time = clock.wall();
            self.readings.push((id, crate::reading::Reading { time, power, voltage, current, counter, relay }));
        }
    }

    /// Takes what an outlet said. Whether it makes sense to ask the next one.
    fn take_outlet(
        &mut self,
        id: DeviceId,
        measured: Result<Measured, PollError>,
        relay: Option<Relay>,
        clock: &dyn crate::clock::Clock,
    ) -> bool {
        match measured {
            Ok(measured) => self.take(id, measured, relay, clock),
            // An outlet that refuses says nothing of the others.
            Err(error @ (PollError::Refused { .. } | PollError::Missing { .. })) => self.silent.push((id, error)),
            Err(error) => self.broken_off = Some(error),
        }
        self.broken_off.is_none()
    }
}

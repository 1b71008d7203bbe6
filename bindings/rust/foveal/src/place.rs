use foveal_sys as sys;

use crate::{Backend, Error, Memory, Result};

/// Where the tensors of a call lie, by the name of the first one of each kind.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Places {
    host: Option<&'static str>,
    device: Option<&'static str>,
    nowhere: Option<&'static str>,
}

impl Places {
    pub(crate) fn add(&mut self, name: &'static str, raw: &sys::foveal_tensor, memory: Memory) {
        let kind = match memory {
            Memory::Host => &mut self.host,
            Memory::Device => &mut self.device,
            Memory::None if raw.shape.iter().take(raw.rank.max(0) as usize).any(|&size| size == 0) => return,
            Memory::None => &mut self.nowhere,
        };
        kind.get_or_insert(name);
    }

    /// Who answers: a call never goes to a backend that could not reach its memory.
    pub(crate) fn backend(&self, asked: Backend) -> Result<Backend> {
        let found = match (self.host, self.device) {
            (Some(host), Some(device)) => {
                return Err(Error::invalid(format!("{host} lies in host memory and {device} in device memory")));
            }
            (Some(host), None) => Some((host, "host", Backend::Cpu)),
            (None, Some(device)) => Some((device, "device", Backend::Sm90)),
            (None, None) => None,
        };
        match (asked, found) {
            (Backend::Auto, Some((_, _, backend))) => Ok(backend),
            (asked, Some((name, kind, backend))) if asked != backend => Err(Error::invalid(format!(
                "{name} lies in {kind} memory, which the backend {asked:?} does not compute with"
            ))),
            (asked, _) => Ok(asked),
        }
    }

    /// The same for a call that computes.
    pub(crate) fn backend_with_data(&self, asked: Backend) -> Result<Backend> {
        if let Some(name) = self.nowhere {
            return Err(Error::invalid(format!("{name} has no memory: it was made by described()")));
        }
        match self.backend(asked)? {
            Backend::Auto => Ok(Backend::Cpu), // no tensor has an element
            backend => Ok(backend),
        }
    }
}

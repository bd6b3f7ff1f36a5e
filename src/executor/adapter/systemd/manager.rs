//! systemd's manager on a bus: a unit as it is, and the calls that change it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use zbus::{Connection, Message, OwnedObjectPath, Variant, connection::Builder, fdo::Error as BusError};

use crate::command::describe;

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// Why a call did not do what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The manager said so.
    Refused(u16, String),
    /// The bus was not reached.
    Unreachable(String),
    /// The manager may have done it.
    Open(String),
}

impl Trouble {
    pub fn reason(&self) -> String {
        let (Self::Refused(_, reason) | Self::Unreachable(reason) | Self::Open(reason)) = self;
        reason.clone()
    }
}

/// One unit, as it was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    pub load_state: String,
    pub active_state: String,
    /// The id of its last start, in hexadecimal; empty before the first.
    pub invocation: String,
    /// How its process ended, of a service.
    pub result: String,
    #[serde(skip)]
    pub has_job: bool,
    #[serde(skip)]
    oneshot: bool,
}

impl Unit {
    pub fn is_down(&self) -> bool {
        matches!(&*self.active_state, "inactive" | "failed")
    }

    /// A service that is over once it has done its work.
    pub fn has_run(&self) -> bool {
        self.oneshot && self.active_state == "inactive" && self.result == "success"
    }
}

pub struct Manager {
    connection: Connection,
}

impl Manager {
    /// A connection for one task: a bus that was restarted is no trouble for the next.
    pub async fn connect(bus: &str, call_timeout: Duration) -> Result<Self, Trouble> {
        let builder = match bus {
            "system" => Builder::system(),
            "session" => Builder::session(),
            address => Builder::address(address),
        };
        let built = tokio::time::timeout(call_timeout, builder.method_timeout(call_timeout).build()).await;
        match built {
            Ok(Ok(connection)) => Ok(Self { connection }),
            Ok(Err(error)) => Err(Trouble::Unreachable(describe(&error))),
            Err(_) => Err(Trouble::Unreachable("the bus does not answer".into())),
        }
    }

    pub async fn unit(&self, name: &str) -> Result<Unit, Trouble> {
        let answer = self.call(MANAGER_PATH, MANAGER, "LoadUnit", &(name,)).await?;
        let path: OwnedObjectPath = answer.body().deserialize().map_err(odd)?;
        let path = path.as_str();
        let invocation: Vec<u8> = self.property(path, UNIT, "InvocationID").await?;
        let (job, _): (u32, OwnedObjectPath) = self.property(path, UNIT, "Job").await?;
        let mut unit = Unit {
            load_state: self.property(path, UNIT, "LoadState").await?,
            active_state: self.property(path, UNIT, "ActiveState").await?,
            invocation: invocation.iter().map(|byte| format!("{byte:02x}")).collect(),
            result: String::new(),
            has_job: job != 0,
            oneshot: false,
        };
        if name.ends_with(".service") && unit.load_state == "loaded" {
            unit.result = self.property(path, SERVICE, "Result").await?;
            unit.oneshot = self.property::<String>(path, SERVICE, "Type").await? == "oneshot";
        }
        Ok(unit)
    }

    /// Asks for a job, in the place of any that waits.
    pub async fn ask(&self, method: &str, unit: &str) -> Result<(), Trouble> {
        self.call(MANAGER_PATH, MANAGER, method, &(unit, "replace")).await?;
        Ok(())
    }

    async fn property<T>(&self, path: &str, interface: &str, name: &str) -> Result<T, Trouble>
    where
        T: for<'a> TryFrom<Variant<'a>, Error = zbus::Error>,
    {
        let answer = self.call(path, PROPERTIES, "Get", &(interface, name)).await?;
        let body = answer.body();
        let value: Variant<'_> = body.deserialize().map_err(odd)?;
        T::try_from(value).map_err(odd)
    }

    async fn call<B>(&self, path: &str, interface: &str, method: &str, body: &B) -> Result<Message, Trouble>
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        let called = self
            .connection
            .call_method(Some(SYSTEMD), path, Some(interface), method, body);
        called.await.map_err(trouble)
    }
}

fn odd(error: zbus::Error) -> Trouble {
    Trouble::Refused(
        500,
        format!("the manager's answer cannot be read: {}", describe(&error)),
    )
}

fn trouble(error: zbus::Error) -> Trouble {
    let not_allowed = |reason: &str| {
        Trouble::Refused(
            403,
            format!("this executor's account may not do that; a polkit rule has to allow it ({reason})"),
        )
    };
    match &error {
        zbus::Error::FDO(standard) => match standard.as_ref() {
            BusError::AccessDenied(reason)
            | BusError::AuthFailed(reason)
            | BusError::InteractiveAuthorizationRequired(reason) => not_allowed(reason),
            BusError::ServiceUnknown(reason) | BusError::NameHasNoOwner(reason) => {
                Trouble::Unreachable(format!("systemd is not on the bus ({reason})"))
            }
            BusError::NoReply(_) | BusError::Disconnected(_) | BusError::Timeout(_) | BusError::TimedOut(_) => {
                Trouble::Open(describe(&error))
            }
            _ => Trouble::Refused(500, error.to_string()),
        },
        zbus::Error::MethodError(name, reason, _) => {
            let reason = reason.clone().unwrap_or_default();
            match name.as_str().rsplit('.').next() {
                Some("NoSuchUnit" | "LoadFailed") => Trouble::Refused(404, format!("does not exist: {reason}")),
                Some("UnitMasked" | "OnlyByDependency" | "JobTypeNotApplicable" | "TransactionIsDestructive") => {
                    Trouble::Refused(409, reason)
                }
                _ => Trouble::Refused(500, format!("{name}: {reason}")),
            }
        }
        _ => Trouble::Open(describe(&error)),
    }
}

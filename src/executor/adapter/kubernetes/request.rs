//! What a command asks of the cluster. Pure: parameters in, request or the reason against it out.

use serde_json::{Map, Value};

/// A person's words on why.
const REASON: &str = "reason";

/// An action whose parameters were understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Restart,
    /// To so many replicas.
    Scale {
        replicas: i64,
    },
    /// By so many more; what that comes to is settled before anything is done.
    ScaleUp {
        more: i64,
    },
    /// To the template of a revision, the newest older one by default; only if `from` is the one that runs.
    Rollback {
        revision: Option<i64>,
        from_revision: Option<i64>,
    },
    DeletePod,
    Cordon,
    Uncordon,
}

impl Request {
    /// `None` for an action of another name.
    pub fn read(action: &str, params: &Map<String, Value>) -> Option<Result<Self, String>> {
        let mut params = Params { params, taken: vec![] };
        let request = match action {
            "restart" => Ok(Self::Restart),
            "scale" => params
                .integer("replicas", 0)
                .and_then(|replicas| replicas.ok_or("scale needs the parameter `replicas`".into()))
                .map(|replicas| Self::Scale { replicas }),
            "scale_up" => params.integer("replicas", 1).map(|more| Self::ScaleUp {
                more: more.unwrap_or(1),
            }),
            "rollback" => params.integer("revision", 1).and_then(|revision| {
                Ok(Self::Rollback {
                    revision,
                    from_revision: params.integer("from_revision", 1)?,
                })
            }),
            "delete_pod" => Ok(Self::DeletePod),
            "cordon" => Ok(Self::Cordon),
            "uncordon" => Ok(Self::Uncordon),
            _ => return None,
        };
        Some(request.and_then(|request| params.nothing_left().map(|()| request)))
    }
}

struct Params<'a> {
    params: &'a Map<String, Value>,
    taken: Vec<&'static str>,
}

impl Params<'_> {
    fn integer(&mut self, name: &'static str, min: i64) -> Result<Option<i64>, String> {
        self.taken.push(name);
        match self.params.get(name) {
            None => Ok(None),
            Some(value) => match value.as_i64() {
                Some(number) if (min..=i64::from(i32::MAX)).contains(&number) => Ok(Some(number)),
                _ => Err(format!(
                    "parameter {name:?} is {value}; it is a whole number from {min}"
                )),
            },
        }
    }

    /// A parameter that changes nothing would be taken for one that does.
    fn nothing_left(&self) -> Result<(), String> {
        let known = |name: &str| name == REASON || self.taken.contains(&name);
        match self.params.keys().find(|name| !known(name)) {
            Some(name) => Err(format!("parameter {name:?} is none of this action's")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parameters_are_read_or_refused() {
        use Request::*;
        for (action, params, expected) in [
            ("restart", json!({}), Ok(Restart)),
            ("restart", json!({"reason": "slow"}), Ok(Restart)),
            ("restart", json!({"grace_s": 3}), Err("\"grace_s\" is none")),
            ("scale", json!({"replicas": 0}), Ok(Scale { replicas: 0 })),
            ("scale", json!({}), Err("needs the parameter `replicas`")),
            ("scale", json!({"replicas": -1}), Err("a whole number from 0")),
            ("scale", json!({"replicas": 1.5}), Err("a whole number from 0")),
            ("scale", json!({"replicas": "3"}), Err("a whole number from 0")),
            ("scale", json!({"replicas": 3_000_000_000_i64}), Err("a whole number")),
            ("scale_up", json!({}), Ok(ScaleUp { more: 1 })),
            ("scale_up", json!({"replicas": 2}), Ok(ScaleUp { more: 2 })),
            ("scale_up", json!({"replicas": 0}), Err("from 1")),
            (
                "rollback",
                json!({"revision": 3, "from_revision": 4}),
                Ok(Rollback {
                    revision: Some(3),
                    from_revision: Some(4),
                }),
            ),
            (
                "rollback",
                json!({}),
                Ok(Rollback {
                    revision: None,
                    from_revision: None,
                }),
            ),
            ("rollback", json!({"revision": null}), Err("from 1")),
            ("delete_pod", json!({}), Ok(DeletePod)),
            ("cordon", json!({"replicas": 1}), Err("none of this action's")),
            ("uncordon", json!({}), Ok(Uncordon)),
        ] {
            let read = Request::read(action, params.as_object().unwrap()).unwrap();
            match (read, expected) {
                (Err(reason), Err(part)) => assert!(reason.contains(part), "{reason}"),
                (read, expected) => assert_eq!(read, expected.map_err(String::from), "{action} {params}"),
            }
        }
        assert!(Request::read("exec", &Map::new()).is_none());
    }
}

"""Calls to the API of a Kubeflow Pipelines server: each with a deadline, again where that is safe.

It uses the client that kfp generates from the server's definition (`kfp_server_api`): `kfp.Client`
itself waits without end and writes to standard output.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sssflow.errors import SssflowError, UnavailableError, UsageError
from sssflow.pipeline.ir import require_kfp
from sssflow.pipeline.kfp_errors import no_answer, no_tls, refusal, strange_answer

T = TypeVar("T")

FINAL = frozenset({"SUCCEEDED", "FAILED", "SKIPPED", "CANCELED"})
"""States in which a run stays."""

_LONGEST_WAIT_S = 8.0
_EQUALS = 1  # the number of the operation in KFP's filters
_TOKEN = re.compile(r"[!-~]+", re.ASCII)


@dataclass(frozen=True)
class KfpAddress:
    """How a server is reached.

    Attributes:
        host: `http://` or `https://`, up to and without `/apis`.
        namespace: Profile of a multi-user server; empty: none.
        token_file: Holds a bearer token; read again for every call, since tokens expire.
        ca_file: Certificates to trust; None: those of certifi.
        timeout_s: Longest time of one call.
        attempts: Tries of a call that may be made again.
    """

    host: str
    namespace: str = ""
    token_file: Path | None = None
    ca_file: Path | None = None
    timeout_s: int = 30
    attempts: int = 5

    def __post_init__(self) -> None:
        if not self.host.startswith(("http://", "https://")):
            raise UsageError(
                "Not an address of a KFP server.",
                where=self.host or "--host",
                expected="http://HOST[:PORT] or https://HOST[:PORT]",
                action="`kubectl -n kubeflow port-forward svc/ml-pipeline 8888` makes it "
                "http://127.0.0.1:8888.",
            )


@dataclass(frozen=True)
class TaskState:
    """One task of a run, as the server tells it."""

    task_id: str
    name: str
    state: str
    message: str


@dataclass(frozen=True)
class RunState:
    """A run, as the server tells it; `request` is what makes the same run once more."""

    run_id: str
    name: str
    state: str
    message: str
    tasks: tuple[TaskState, ...]
    request: Any

    @property
    def parameters(self) -> dict[str, str]:
        """Parameters of the run, as far as the server tells them."""
        told = self.request.runtime_config
        return {name: str(value) for name, value in ((told and told.parameters) or {}).items()}

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in FINAL


class KfpApi:
    """A KFP server.

    Args:
        address: How it is reached.
        sleep: Waits some seconds between tries.

    Raises:
        UsageError: kfp is not installed.
    """

    def __init__(self, address: KfpAddress, *, sleep: Callable[[float], None] = time.sleep) -> None:
        require_kfp()
        import kfp_server_api as generated

        self.address = address
        self._sleep = sleep
        self._models = generated
        settings = generated.Configuration(host=address.host.rstrip("/"))
        settings.retries = False  # tries are counted once, here
        if address.ca_file is not None:
            settings.ssl_ca_cert = str(address.ca_file)
        if address.token_file is not None:
            settings.api_key = {"authorization": "set before each call"}
            settings.api_key_prefix = {"authorization": "Bearer"}
            settings.refresh_api_key_hook = self._renew_token
        self._client = generated.ApiClient(settings)
        self._runs = generated.RunServiceApi(self._client)
        self._experiments = generated.ExperimentServiceApi(self._client)
        self._health = generated.HealthzServiceApi(self._client)

    def is_multi_user(self) -> bool:
        """Ask the server whether it serves several profiles; an answer shows that it is there."""
        answer = self._ask("the server's health", self._health.healthz_service_get_healthz)
        return bool(answer.multi_user)

    def version(self) -> str:
        """Version that the server tells; empty where it tells none."""
        with contextlib.suppress(SssflowError, ValueError):
            told = self._ask("the server's version", self._raw_version)
            found = json.loads(told)
            return str(found.get("tag_name") or found.get("apiServerTagName") or "")
        return ""

    def experiment(self, name: str) -> str:
        """ID of the experiment of that name, which is made if it is not there."""
        found = self._find_experiment(name)
        if found:
            return found
        body = self._models.V2beta1Experiment(
            display_name=name, namespace=self.address.namespace or None
        )
        try:
            made = self._ask(
                f"the new experiment {name}",
                lambda **options: self._experiments.experiment_service_create_experiment(
                    experiment=body, **options
                ),
            )
        except UsageError:
            # Another submission was faster, or an answer to an earlier try was lost.
            found = self._find_experiment(name)
            if found:
                return found
            raise
        return self._required(made.experiment_id, "experiment_id")

    def create(
        self,
        name: str,
        spec: dict[str, Any],
        parameters: dict[str, Any],
        *,
        experiment_id: str,
        description: str = "",
        service_account: str = "",
    ) -> str:
        """Start a run, and give its ID.

        A call whose answer was lost may have started it: before each further try the server is
        asked for a run of this name, so `name` must be this submission's alone.
        """
        body = self._models.V2beta1Run(
            experiment_id=experiment_id,
            display_name=name,
            description=description,
            pipeline_spec=spec,
            runtime_config=self._models.V2beta1RuntimeConfig(parameters=parameters),
            service_account=service_account or None,
        )
        return self._started(name, experiment_id, body)

    def create_again(self, run: RunState, name: str) -> str:
        """Start another run of the same pipeline, parameters and account, and give its ID.

        Raises:
            UsageError: The server does not tell what the run was made of.
        """
        told = run.request
        if not told.pipeline_spec:
            raise UsageError(
                "The server does not tell what this run was made of.",
                where=f"run {run.run_id}",
                action="Submit it once more with the same --config, --data, --store and --image: "
                "what is finished is found in the store.",
            )
        body = self._models.V2beta1Run(
            experiment_id=told.experiment_id,
            display_name=name,
            description=told.description,
            pipeline_spec=told.pipeline_spec,
            runtime_config=told.runtime_config,
            service_account=told.service_account or None,
        )
        return self._started(name, str(told.experiment_id), body)

    def run(self, run_id: str) -> RunState:
        """How a run stands."""
        told = self._ask(
            f"run {run_id}", lambda **options: self._runs.run_service_get_run(run_id, **options)
        )
        details = told.run_details.task_details if told.run_details else None
        return RunState(
            run_id=self._required(told.run_id, "run_id"),
            name=str(told.display_name or ""),
            state=str(told.state or "RUNTIME_STATE_UNSPECIFIED"),
            message=_message(told.error),
            tasks=tuple(
                TaskState(
                    task_id=str(task.task_id),
                    name=str(task.display_name or ""),
                    state=str(task.state or "RUNTIME_STATE_UNSPECIFIED"),
                    message=_message(task.error),
                )
                for task in details or ()
            ),
            request=told,
        )

    def terminate(self, run_id: str) -> None:
        """Stop a run; its tasks end soon afterwards."""
        self._ask(
            f"the end of run {run_id}",
            lambda **options: self._runs.run_service_terminate_run(run_id, **options),
        )

    def _started(self, name: str, experiment_id: str, body: Any) -> str:
        def start(**options: Any) -> Any:
            return self._runs.run_service_create_run(run=body, **options)

        def found() -> str:
            return self._find_run(name, experiment_id)

        made = self._ask(f"the new run {name}", start, before_again=found)
        return made if isinstance(made, str) else self._required(made.run_id, "run_id")

    def _required(self, value: Any, name: str) -> str:
        if not value:
            raise strange_answer(self.address.host, f"no {name} in it")
        return str(value)

    def _find_experiment(self, name: str) -> str:
        options = {"namespace": self.address.namespace} if self.address.namespace else {}
        answer = self._ask(
            f"the experiment {name}",
            lambda **more: self._experiments.experiment_service_list_experiments(
                filter=_named(name), **options, **more
            ),
        )
        return str(answer.experiments[0].experiment_id) if answer.experiments else ""

    def _find_run(self, name: str, experiment_id: str) -> str:
        answer = self._ask(
            f"the run {name}",
            lambda **options: self._runs.run_service_list_runs(
                experiment_id=experiment_id, filter=_named(name), **options
            ),
        )
        return str(answer.runs[0].run_id) if answer.runs else ""

    def _raw_version(self, **options: Any) -> str:
        response = self._client.call_api(
            "/apis/v1beta1/healthz",
            "GET",
            header_params={"Accept": "application/json"},
            auth_settings=["Bearer"],
            _preload_content=False,
            _return_http_data_only=True,
            **options,
        )
        return str(response.data.decode())

    def _renew_token(self, settings: Any) -> None:
        path = self.address.token_file
        try:
            token = path.read_text("utf-8", errors="replace").strip() if path else ""
        except OSError as error:
            raise UsageError(
                "The token cannot be read.", where=path, found=error.strerror
            ) from None
        if not _TOKEN.fullmatch(token):  # http.client would refuse it, and tell it
            raise UsageError(
                "The file holds no bearer token.",
                where=path,
                expected="one line of ASCII without spaces, the token alone",
                found=f"{len(token.splitlines())} line(s)",
                action="Write the token alone into the file that --token-file names.",
            )
        settings.api_key["authorization"] = token

    def _ask(
        self,
        what: str,
        call: Callable[..., T],
        *,
        before_again: Callable[[], str] | None = None,
    ) -> T | Any:
        """`call` until it answers or its tries are used up.

        Args:
            what: What is asked for, for messages.
            call: Takes `_request_timeout`.
            before_again: For a call that must not be made twice: what an earlier try made, if it
                made anything.
        """
        for attempt in range(1, self.address.attempts + 1):
            with self._explained(what, last=attempt == self.address.attempts):
                answer = call(_request_timeout=self.address.timeout_s)
                self._require_json()
                return answer
            self._sleep(min(_LONGEST_WAIT_S, 0.5 * 2**attempt))
            if before_again is not None and (made := before_again()):
                return made
        raise AssertionError("attempts is at least 1")

    def _require_json(self) -> None:
        """The generated client takes any page for an empty answer; a login page is none."""
        told = getattr(self._client.last_response, "data", b"")
        if isinstance(told, str) and not told.lstrip().startswith("{"):
            raise ValueError(f"a page that begins with {told.strip()[:40]!r}")

    @contextlib.contextmanager
    def _explained(self, what: str, *, last: bool) -> Iterator[None]:
        """Turn failures into our errors; those that may pass are swallowed unless `last`."""
        from urllib3.exceptions import HTTPError

        address = self.address.host
        try:
            yield
        except HTTPError as error:
            if last:
                raise no_answer(address, what, error) from None
        except (self._models.ApiException, ValueError, AttributeError, TypeError) as error:
            refused = self._refused(what, error)
            if last or not isinstance(refused, UnavailableError):
                raise refused from None

    def _refused(self, what: str, error: Exception) -> SssflowError:
        """Our error for one of the generated client.

        It takes the body of a refusal for UTF-8, which that of a gateway need not be, and there is
        none where TLS failed: then a failure to decode hides the refusal.
        """
        address, kind = self.address.host, self._models.ApiException
        behind = error if isinstance(error, kind) else error.__context__
        if not isinstance(behind, kind):
            return strange_answer(address, f"{type(error).__name__}: {error}")
        if not behind.status:
            return no_tls(address, str(behind.reason))
        body = behind.body or ""
        text = body if isinstance(body, str) else body.decode(errors="replace")
        return refusal(address, what, int(behind.status), text)


def _named(name: str) -> str:
    predicate = {"operation": _EQUALS, "key": "display_name", "stringValue": name}
    return json.dumps({"predicates": [predicate]})


def _message(status: Any) -> str:
    return str(status.message or "") if status is not None else ""

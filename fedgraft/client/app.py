"""The Flower ClientApp: hello, train and evaluate.

In a simulation it does the work itself. On a deployed site Flower starts a process for every message, so nothing heavy
is imported: the message is relayed to the site's resident worker, and its answer back.
"""

import logging

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fedgraft.client.relay import ask_worker
from fedgraft.core.errors import UserError, reason_of
from fedgraft.core.refusals import refusal_of
from fedgraft.flower.messages import JOB, Job, for_sites

app = ClientApp()
_FAILED = 100
"""Error code of a site that reports what went wrong; Flower's own codes are lower."""
WORKER = "worker"
"""The key of the node configuration that holds the address of a deployed site's worker."""
_log = logging.getLogger("fedgraft.app")


@app.query()
def hello(message: Message, context: Context) -> Message:
    """Which sites this node holds."""
    return _answered("hello", message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round of training."""
    return _answered("train", message, context)


@app.train("secagg")
def secagg(message: Message, context: Context) -> Message:
    """A stage of secure aggregation."""
    return _answered("secagg", message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """One evaluation of every scope."""
    return _answered("evaluate", message, context)


def _answered(kind: str, message: Message, context: Context) -> Message:
    try:
        if WORKER in context.node_config:
            content = ask_worker(str(context.node_config[WORKER]), kind, message.content)
        elif kind == "hello":
            content = _held_sites(message.content, context)
        else:
            from fedgraft.client import tasks
            from fedgraft.client.loaded_run import simulated_run
            from fedgraft.client.secure_answers import answer_stage

            answer = {"train": tasks.train, "evaluate": tasks.evaluate, "secagg": answer_stage}[kind]
            content = answer(message.content, simulated_run)
        return Message(content, reply_to=message)
    except Exception as error:  # a node's failure is an answer: the round continues without its sites
        return Message(Error(_FAILED, _told(error, context)), reply_to=message)


def _told(error: Exception, context: Context) -> str:
    """What the server is told of a failure: of a deployed site's only the code and its sentence."""
    if WORKER not in context.node_config:
        return reason_of(error)
    refusal = refusal_of(error)
    _log.warning("%s", refusal)
    return refusal.public


def _held_sites(content: RecordDict, context: Context) -> RecordDict:
    """Of n nodes, each holds every n-th site from its own number on; raises UserError if the node has no number."""
    if "partition-id" not in context.node_config:
        raise UserError('this SuperNode was started without --node-config "partition-id=N", the number of its site')
    first = int(str(context.node_config["partition-id"]))
    count = Job.from_record(content.config_records[JOB]).config.sites
    nodes = int(str(context.node_config.get("num-partitions", count)))
    return for_sites(RecordDict(), range(first, max(count, first + 1), nodes))

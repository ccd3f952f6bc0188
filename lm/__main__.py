"""The command line: python -m lm VERB. The pipeline's stages are not verbs; they are run by dvc."""

import argparse
import dataclasses
from pathlib import Path

from lm.errors import exit_cleanly


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lm",
        description="A language model from scratch. The pipeline itself is run by: dvc repro",
        epilog="Exit status: 0 done, 1 an error that the message explains, 2 wrong usage, 130 interrupted.",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    preset = verbs.add_parser(
        "preset",
        help="rewrite params.yaml for a larger (or smaller) set-up, keeping its comments",
        description="Rewrite params.yaml for another set-up, keeping its comments. "
        "Example: python -m lm preset tinystories",
    )
    preset.add_argument("name", nargs="?", metavar="NAME", help="without it, the presets are listed")
    preset.add_argument("--params", type=Path, default=Path("params.yaml"), help="the file to rewrite")
    preset.set_defaults(run=run_preset)

    generate = verbs.add_parser(
        "generate",
        help="continue a prompt with a trained model, streaming",
        description="Continue a prompt with a trained model. What is not given is taken from `sample` in params.yaml. "
        "Example: python -m lm generate 'Once upon a time' --temperature 0.5 --num-samples 3",
    )
    generate.add_argument("prompt", nargs="?", help="the beginning; default: the first of sample.prompts")
    generate.add_argument("--model", type=Path, default=Path("data/model"), help="folder of the model (%(default)s)")
    generate.add_argument(
        "--tokenizer", type=Path, default=Path("data/tokenizer"), help="folder of its tokenizer (%(default)s)"
    )
    generate.add_argument("--params", type=Path, default=Path("params.yaml"), help="file of defaults (%(default)s)")
    generate.add_argument("--num-samples", type=int)
    generate.add_argument("--max-new-tokens", type=int)
    generate.add_argument("--temperature", type=float, help="0 is greedy")
    generate.add_argument("--top-k", type=int, help="0 keeps all tokens")
    generate.add_argument("--top-p", type=float, help="1 keeps all tokens")
    generate.add_argument("--min-p", type=float, help="0 keeps all tokens")
    generate.add_argument("--repetition-penalty", type=float, help="1 changes nothing")
    generate.add_argument("--seed", type=int, help="of the first sample; the others count on")
    generate.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends a text; may be repeated")
    generate.add_argument(
        "--past-context",
        choices=["slide", "stop"],
        default="slide",
        help="slide: the model forgets the beginning and reads the rest again; stop: the text ends (%(default)s)",
    )
    generate.add_argument(
        "--interactive", action="store_true", help="ask for beginnings, and change settings, with the model loaded"
    )
    generate.set_defaults(run=run_generate)

    serve = verbs.add_parser(
        "serve",
        help="a page to try a trained model on, and OpenAI's /v1/completions",
        description="Serve a trained model: a page at / and OpenAI's /v1/completions, to this machine alone unless "
        "--host says otherwise. Example: python -m lm serve --port 8080",
    )
    serve.add_argument("--model", type=Path, default=Path("data/model"), help="folder of the model (%(default)s)")
    serve.add_argument(
        "--tokenizer", type=Path, default=Path("data/tokenizer"), help="folder of its tokenizer (%(default)s)"
    )
    serve.add_argument("--metrics", type=Path, default=Path("metrics"), help="folder of train.csv (%(default)s)")
    serve.add_argument("--params", type=Path, default=Path("params.yaml"), help="file of defaults (%(default)s)")
    serve.add_argument("--host", default="127.0.0.1", help="the address to listen on (%(default)s)")
    serve.add_argument("--port", type=int, default=8000, help="0 takes any that is free (%(default)s)")
    serve.add_argument("--rows", type=int, default=8, help="texts that grow at once (%(default)s)")
    serve.add_argument("--max-tokens", type=int, default=2048, help="of a text, at most (%(default)s)")
    serve.add_argument("--seconds", type=float, default=120, help="that a request may take (%(default)s)")
    serve.set_defaults(run=run_serve)

    export = verbs.add_parser(
        "export",
        help="write a trained model for other programs: transformers, llama.cpp",
        description="Write a trained model for other programs. What they have no layout for is refused by name. "
        "Examples: python -m lm export hf stories; python -m lm export gguf stories.gguf --type q8_0",
    )
    formats = export.add_subparsers(required=True, metavar="FORMAT")
    hf = formats.add_parser("hf", help="a folder that transformers loads")
    hf.add_argument("out", type=Path, metavar="DIR", help="folder to write; it must not hold a model yet")
    hf.add_argument("--raw", type=Path, help="the folder of its data, such as data/raw, for the model card")
    hf.add_argument("--metrics", type=Path, help="its metrics, such as metrics/train.json, for the model card")
    hf.set_defaults(run=run_export_hf)
    gguf = formats.add_parser("gguf", help="a file that llama.cpp runs")
    gguf.add_argument("out", type=Path, metavar="FILE", help="file to write; it must not be there yet")
    gguf.add_argument("--type", choices=["f32", "f16", "q8_0"], default="f16", help="of the weights (%(default)s)")
    gguf.set_defaults(run=run_export_gguf)
    for of_format in (hf, gguf):
        of_format.add_argument("--model", type=Path, default=Path("data/model"), help="(%(default)s)")
        of_format.add_argument("--tokenizer", type=Path, default=Path("data/tokenizer"), help="(%(default)s)")

    imports = verbs.add_parser(
        "import",
        help="make a model of another program one of ours",
        description="Read a folder in Llama's or Qwen3's layout; what our layers cannot represent is refused by name. "
        "Example: python -m lm import hf stories --model imported/model --tokenizer imported/tokenizer",
    )
    layouts = imports.add_subparsers(required=True, metavar="FORMAT")
    hf = layouts.add_parser("hf", help="a folder in Llama's or Qwen3's layout")
    hf.add_argument("folder", type=Path, metavar="DIR")
    hf.add_argument("--model", type=Path, required=True, help="folder to write the model into")
    hf.add_argument("--tokenizer", type=Path, required=True, help="folder to write its tokenizer into")
    hf.set_defaults(run=run_import_hf)

    report = verbs.add_parser(
        "report",
        help="show the metrics, one sample, the ablation table and the pictures of the last run",
        description="Show what the last run of the pipeline has made.",
    )
    report.add_argument("--metrics", type=Path, default=Path("metrics"), help="(%(default)s)")
    report.add_argument("--samples", type=Path, default=Path("data/samples"), help="(%(default)s)")
    report.set_defaults(run=run_report)

    plan = verbs.add_parser(
        "plan",
        help="what the training of params.yaml will take: FLOPs, memory, disk, time",
        description="Show what the training of params.yaml will take: parameters, FLOPs, memory, the largest micro "
        "batch that fits, disk, and the time, from a few steps on random tokens. It needs no data. "
        "Exit status 1: it does not fit; the message names the nearest settings that do.",
    )
    plan.add_argument("--params", type=Path, default=Path("params.yaml"), help="(%(default)s)")
    plan.add_argument(
        "--checkpoints",
        type=Path,
        default=Path("data/.checkpoints"),
        help="folder of in-flight checkpoints (%(default)s)",
    )
    plan.set_defaults(run=run_plan)

    join = verbs.add_parser(
        "join",
        help="join token folders, made of shares of a corpus by several machines, into one",
        description="Join token folders that were encoded with one tokenizer, in the order given, into a new one. "
        "Example: python -m lm join data/tokens shares/1 shares/2",
    )
    join.add_argument("out", type=Path, metavar="OUT", help="the folder to make, such as data/tokens")
    join.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="what the stage encode_memmap made")
    join.set_defaults(run=run_join)

    args = parser.parse_args()
    args.run(args)


def run_preset(args: argparse.Namespace) -> None:
    from lm import preset

    if args.name is None:
        print("\n".join(preset.names()))
        return
    changes = preset.apply(args.name, args.params)
    print("\n".join(changes) if changes else f"{args.params} is the preset {args.name} already")


def run_generate(args: argparse.Namespace) -> None:
    # Imported here: the other verbs need not wait for torch.
    from lm import config
    from lm.device import pick_device
    from lm.errors import UserError
    from lm.generation.batch import Batch
    from lm.generation.numba_decoder import fastest_decoder
    from lm.generation.terminal import Terminal
    from lm.model.files import load_model
    from lm.tokenizer.tokenizer import Tokenizer

    params = config.load(args.params)
    names = [field.name for field in dataclasses.fields(params.sample)]
    given = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    try:
        settings = dataclasses.replace(params.sample, **given)
    except ValueError as error:
        raise UserError(str(error)) from error
    if "" in args.stop:
        raise UserError("--stop: expected some text, got ''")
    tokenizer = Tokenizer.load(args.tokenizer)
    device = pick_device(params.runtime.device)
    model = load_model(args.model, tokenizer.hash, params.runtime.attention_backend).to(device)
    terminal = Terminal(
        batch=Batch(fastest_decoder(model, num_rows=1)),
        tokenizer=tokenizer,
        context_length=model.config.context_length,
        stop=args.stop,
        slide=args.past_context == "slide",
    )
    if args.prompt is not None or not args.interactive:
        terminal.write(settings.prompts[0] if args.prompt is None else args.prompt, settings)
    if args.interactive:
        terminal.converse(settings)


def run_serve(args: argparse.Namespace) -> None:
    from lm import config
    from lm.device import pick_device
    from lm.errors import UserError
    from lm.model.files import load_model
    from lm.serving.completion_request import Limits
    from lm.serving.server import listening, serve
    from lm.tokenizer.tokenizer import Tokenizer

    params = config.load(args.params)
    try:
        limits = Limits(rows=args.rows, max_tokens=args.max_tokens, seconds=args.seconds)
    except ValueError as error:
        raise UserError(str(error)) from error
    tokenizer = Tokenizer.load(args.tokenizer)
    model = load_model(args.model, tokenizer.hash, params.runtime.attention_backend)
    model = model.to(pick_device(params.runtime.device))
    name = args.model.resolve().name
    with listening(args.host, args.port, name, model, tokenizer, params.sample, args.metrics, limits) as server:
        serve(server)


def run_export_hf(args: argparse.Namespace) -> None:
    from lm.export.hugging_face import export_hugging_face

    export_hugging_face(args.model, args.tokenizer, args.out, args.raw, args.metrics)


def run_export_gguf(args: argparse.Namespace) -> None:
    from lm.export.gguf import export_gguf

    export_gguf(args.model, args.tokenizer, args.out, args.type)


def run_import_hf(args: argparse.Namespace) -> None:
    from lm.export.import_hugging_face import import_hugging_face

    import_hugging_face(args.folder, args.model, args.tokenizer)


def run_plan(args: argparse.Namespace) -> None:
    from lm import config
    from lm.device import pick_device
    from lm.training.distributed import is_launched, launch, num_processes, process_group
    from lm.training.plan import duration, measure_step_seconds, plan

    params = config.load(args.params)
    model, optim, train, runtime = params.model, params.optim, params.train, params.runtime
    if runtime.num_processes > 1 and not is_launched():
        launch(main, runtime.num_processes)
        return
    vocab_size = params.tokenizer.vocab_size
    with process_group(pick_device(runtime.device)) as device:
        needs = plan(model, vocab_size, optim, train, runtime, device, args.checkpoints, num_processes())
        print(needs)
        needs.check()
        seconds = measure_step_seconds(model, vocab_size, optim, train, runtime, device)
        print(f"time: {seconds:.3g} s a step, about {duration(seconds * train.max_steps)} for all, evaluations apart")


def run_join(args: argparse.Namespace) -> None:
    from lm.tokens import join_tokens

    for split, facts in join_tokens(args.folders, args.out)["splits"].items():
        print(f"{split}: {facts['count']:,} tokens in {facts['documents']:,} documents")


def run_report(args: argparse.Namespace) -> None:
    from lm.report import report

    print(report(args.metrics, args.samples))


if __name__ == "__main__":
    exit_cleanly(main)

"""Bad overrides, sweep files, groups of one's own, axes."""

from tests.faults.cases import Bad, a_folder, link, sweep

HEAD = "# @package _global_\n"
# Nine levels of nine aliases each: 387 million values.
BOMB = "a0: &a0 [1, 1]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9))


def own(said: str, content: str | bytes, *overrides: str, process: bool = False) -> Bad:
    """The sweep file ./sweeps/mine.yaml."""
    return Bad(said, ("+sweep=mine", *overrides), {"sweeps/mine.yaml": content}, process=process)


COMMAND_LINE = [
    Bad("choose a sweep: lrsweep +sweep=NAME", (), process=True),
    Bad("lora_lr: no such command (choices: export, import, list, new, report, ", ("lora_lr",)),
    Bad("sweep=lora: no such option; did you mean lora_lr?", ("+sweep=lora",)),
    Bad("sweep", ("+sweep=",)),
    Bad("sweep", ("+sweep=lora_lr", "+sweep=full_lr")),
    Bad("sweep=../../x: no such option", ("+sweep=../../x",)),
    sweep(
        "training: max_steps (60) is too few for horizon (5000): the warm-up alone takes 500 steps",
        "training.horizon=5000",
    ),
    sweep(
        "data.packing=true: with model.attn_implementation=flash_attention_2 packed rows see each other; set ",
        "data.packing=true",
        "model.attn_implementation=flash_attention_2",
    ),
    Bad("--multirun", ("+sweep=lora_lr", "--multirun")),
    Bad("--frobnicate: no such flag", ("+sweep=lora_lr", "--frobnicate")),
    Bad("--run: no such flag", ("+sweep=lora_lr", "--run")),
    Bad("--config-dir: no such flag", ("+sweep=lora_lr", "--config-dir", "conf")),
    Bad("--experimental-rerun: no such flag", ("--experimental-rerun", "job.pickle"), {"job.pickle": b"\x80\x04."}),
    Bad("--cfg yaml: needs one of job, hydra, all", ("+sweep=lora_lr", "--cfg", "yaml")),
    Bad("--cfg : needs one of job", ("+sweep=lora_lr", "--cfg")),
    Bad("optimizer.lrr: no such key", ("+sweep=lora_lr", "optimizer.lrr=1", "--cfg", "job")),
    sweep("optimizer.lr: not an override", "optimizer.lr"),
    sweep("a b=1: not an override", "a b=1"),
    sweep("=1: ", "=1"),
    sweep("space.optimizer.lr=[1e-5,1e-4: not an override", "space.optimizer.lr=[1e-5,1e-4"),
    sweep("not an override", f"optimizer.kwargs={'[' * 3000}"),
    sweep("write space.optimizer.lr=[1e-4,1e-3]", "optimizer.lr=1e-4,1e-3"),
]

KEYS = [
    sweep("optimizer.lrr: no such key; did you mean optimizer.lr?", "optimizer.lrr=1", process=True),
    sweep("lr: no such key; did you mean optimizer.lr?", "lr=1e-4"),
    sweep("extra: no such key", "+extra=1"),
    sweep("optimizer.extra: no such key", "+optimizer.extra=1"),
    sweep("optimizer._target_: no such key", "+optimizer._target_=os.system"),
    sweep("optimizer.kwargs._target_", "+optimizer.kwargs._target_=builtins.open"),
    sweep("_target_", "scheduler.kwargs={_target_: builtins.eval}"),
    sweep("'_target_': 'os.system'}: ", "pruner=median", "pruner.kwargs={_target_: os.system}"),
    sweep("optimizer=adamv: no such option; did you mean adamw?", "optimizer=adamv"),
    sweep("model=../../etc/passwd: no such option", "model=../../etc/passwd"),
    sweep("optimizer: missing", "~optimizer"),
    sweep("optimizer.lr: missing", "~optimizer.lr"),
    sweep("model=null: ", "model=null"),
    sweep("training=5", "++training=5"),
    sweep("optimizer.lr: Interpolation key 'oops' not found", "optimizer.lr=${oops}"),
    sweep("optimizer.lr", "optimizer.lr=${optimizer.lr}"),
    sweep("LRSWEEP_NO_SUCH_VARIABLE", "optimizer.lr=${oc.env:LRSWEEP_NO_SUCH_VARIABLE}"),
    sweep("nosuch", "optimizer.lr=${nosuch:1}"),
    sweep("optimizer.lr", "optimizer.lr=${"),
]

VALUES = [
    sweep("optimizer.lr=0: ", "optimizer.lr=0"),
    sweep("optimizer.lr=nan: ", "optimizer.lr=nan"),
    sweep("optimizer.lr=inf: ", "optimizer.lr=inf"),
    sweep("optimizer.lr=inf: ", "optimizer.lr=1e400"),
    sweep("optimizer.lr='fast': ", "optimizer.lr=fast"),
    sweep("optimizer.lr=True: ", "optimizer.lr=true"),
    sweep("optimizer.lr=None: ", "optimizer.lr=null"),
    sweep("optimizer.lr", "optimizer.lr=[1e-4]"),
    sweep("optimizer.betas.1=1.0: ", "optimizer.betas=[0.9,1.0]"),
    sweep("optimizer.betas.1: missing", "optimizer.betas=[0.9]"),
    sweep("optimizer.betas", "optimizer.betas=[0.9,0.99,0.999]"),
    sweep("optimizer.betas", "optimizer.betas=0.9"),
    sweep("optimizer.eps=0", "optimizer.eps=0"),
    sweep("optimizer.weight_decay=-0.1: ", "optimizer.weight_decay=-0.1"),
    sweep("optimizer.name='adamm': ", "optimizer.name=adamm"),
    sweep("optimizer.kwargs.momentum: adamw takes", "optimizer.kwargs={momentum: 1}"),
    sweep("optimizer.kwargs.lr: adamw takes", "optimizer.kwargs={lr: 1}"),
    sweep(
        "optimizer.kwargs={'momentum': 0, 'nesterov': True}",
        "optimizer=sgd",
        "optimizer.kwargs={momentum: 0, nesterov: true}",
    ),
    sweep("optimizer.kwargs={'momentum': 'much'}", "optimizer=sgd", "optimizer.kwargs={momentum: much}"),
    sweep("scheduler.name='greedy': ", "scheduler.name=greedy"),
    sweep("scheduler.warmup_ratio=1.5: ", "scheduler.warmup_ratio=1.5"),
    sweep("scheduler.warmup_steps=-1: ", "scheduler.warmup_ratio=null", "scheduler.warmup_steps=-1"),
    sweep("scheduler: give warmup_steps or warmup_ratio, not both", "scheduler.warmup_steps=3"),
    sweep("scheduler.kwargs={}: warmup_stable_decay: ", "scheduler.name=warmup_stable_decay"),
    sweep("scheduler.kwargs={}: cosine_with_min_lr: ", "scheduler.name=cosine_with_min_lr"),
    sweep("scheduler.kwargs={'power': 2}: cosine: ", "scheduler.kwargs={power: 2}"),
    sweep("training.max_steps=0: ", "training.max_steps=0"),
    sweep("training.max_steps=1.5: ", "training.max_steps=1.5"),
    sweep("training.max_steps='many': ", "training.max_steps=many"),
    sweep("training.max_steps", f"training.max_steps={'9' * 5000}"),
    sweep("training.batch_size=0: ", "training.batch_size=0"),
    sweep("training.batch_size=-8: ", "training.batch_size=-8"),
    sweep("training.eval_every=0: ", "training.eval_every=0"),
    sweep("training.seed=-1: ", "training.seed=-1"),
    sweep("training.seed=4294967296: ", "training.seed=4294967296"),
    sweep("training.max_grad_norm=nan: ", "training.max_grad_norm=nan"),
    sweep("training: horizon (10) is the real run's steps", "training.horizon=10"),
    sweep("training.gradient_checkpointing='often': ", "training.gradient_checkpointing=often"),
    sweep("finetune.mode='prefix': ", "finetune.mode=prefix"),
    sweep("finetune.r=0: ", "finetune.r=0"),
    sweep("finetune.alpha=-1", "finetune.alpha=-1"),
    sweep("finetune.dropout=1.0: ", "finetune.dropout=1.0"),
    sweep("finetune.target_modules", "finetune.target_modules=[]"),
    sweep(
        "optimizer.lr_groups.vision=0.1: no trained parameter has this in its name", "optimizer.lr_groups={vision: 0.1}"
    ),
    sweep("optimizer.lr_groups", "optimizer.lr_groups={layers: 0}"),
    sweep("optimizer.lr_groups", "optimizer.lr_groups={layers: .nan}"),
    sweep("optimizer.lr_groups", "optimizer.lr_groups=[layers]"),
    sweep("is no regular expression", "optimizer.lr_groups={*layers: 0.1}"),
    own("may take for ever", HEAD + "defaults: [lora_lr]\noptimizer: {lr_groups: {'([a-z]+)+,': 0.1}}\n"),
    sweep("both give", "optimizer.lr_groups={lora_B: 4}", "finetune.loraplus_lr_ratio=16"),
    sweep("space.optimizer.lr_groups.lora_B", "space.optimizer.lr_groups.lora_B=[1,0]"),
    sweep("finetune.init_lora_weights", "finetune.init_lora_weights=eva"),
    sweep("finetune.init_lora_weights", "finetune.init_lora_weights=false"),
    sweep("finetune.init_lora_weights", "finetune.init_lora_weights=pissa_niter_0"),
    sweep("needs an even r", "finetune.init_lora_weights=orthogonal", "finetune.r=3"),
    sweep("changes the base that dora measures", "finetune.init_lora_weights=pissa", "finetune.dora=true"),
    sweep(
        "takes from linear layers only",
        "finetune.init_lora_weights=olora",
        "finetune.target_modules=[q_proj,embed_tokens]",
    ),
    sweep("finetune.target_modules=('nope',)", "finetune.target_modules=[nope]"),
    sweep("finetune.trainable_layers=99: the model has 4", "finetune=freeze", "finetune.trainable_layers=99"),
    sweep(
        "finetune.unfrozen_parameters: 'lm_head': the start",
        "finetune=freeze",
        "finetune.unfrozen_parameters=[lm_head]",
    ),
    sweep("has 2048 rows", "finetune=freeze", "finetune.unfrozen_parameters=['model.embed_tokens[:4096]']"),
    sweep("is no regular expression", "finetune=freeze", "finetune.unfrozen_parameters=['model.(']"),
    sweep("its range holds no rows", "finetune=freeze", "finetune.unfrozen_parameters=['model.embed_tokens[5:5]']"),
    sweep("is for mode freeze, not lora", "finetune.unfrozen_parameters=[model]"),
    sweep("model.quantization='4bit': needs a CUDA GPU", "finetune=qlora"),
    sweep("model.quantization='3bit': ", "model.quantization=3bit"),
    sweep("model.dtype='float8': ", "model.dtype=float8"),
    sweep("model.attn_implementation='magic'", "model.attn_implementation=magic"),
    sweep("pin model.revision to a 40-digit commit", "model.trust_remote_code=true"),
    sweep("pin model.revision to a 40-digit commit", "model.trust_remote_code=true", "model.revision=main"),
    sweep("name='../x': letters, digits", "name=../x"),
    sweep("name='a/b': letters, digits", "name=a/b"),
    sweep("name='.hidden': letters, digits", "name=.hidden"),
    sweep("name=''", "name=''"),
    sweep("name='-rf': letters, digits", "name=-rf"),
    sweep("name", f"name={'x' * 101}"),
    sweep("engine.slots=0", "engine.slots=0"),
    sweep("engine=fast: no such option", "engine=fast"),
    sweep("engine=packed: ", "engine=packed", "finetune.dora=true"),
    sweep("engine.command: missing", "engine=external"),
    sweep(
        "engine.dialect='fairseq': no such dialect",
        "engine=external",
        "engine.command='t {config}'",
        "engine.dialect=fairseq",
    ),
    sweep(
        "engine.command: nosuchtrainer is not on PATH: set engine.python",
        "engine=external",
        "engine.command='nosuchtrainer {config}'",
        "engine.dialect=trl",
    ),
    sweep("engine.command='train': has no {config}", "engine=external", "engine.command=train", "engine.dialect=trl"),
    sweep(
        "engine: command: no closing quotation",
        "engine=external",
        "engine.command='t \"{config}'",
        "engine.dialect=trl",
    ),
    sweep(
        "optimizer.name='nadam': ",
        "engine=external",
        "engine.command='t {config}'",
        "engine.dialect=trl",
        "optimizer.name=nadam",
    ),
    sweep("tracking.uri=foo: a store is ", "tracking.uri=foo"),
    sweep("tracking.uri=ftp://host/x: a store is ", "tracking.uri=ftp://host/x"),
    sweep("tracking=wandb: no such option", "tracking=wandb"),
    sweep(
        "data.path=https://me:***@host/rows.jsonl?token=***: holds a secret",
        "data=local",
        "data.format=alpaca",
        "data.path='https://me:hunter2@host/rows.jsonl?token=abcdef'",
    ),
]

SEARCH = [
    sweep("search=bayes: no such option", "search=bayes"),
    sweep("search.method='bayes': no such method", "search.method=bayes", "search.n_trials=4"),
    sweep("search.n_trials=0: ", "search.n_trials=0"),
    sweep("search: method tpe never ends by itself", "search=tpe", "search.n_trials=null"),
    sweep("search: extend=true grows grids", "search=tpe", "search.extend=true"),
    sweep("search.replicates=21: input should be 'auto' or less than or equal to 20", "search.replicates=21"),
    sweep("search.replicates='often': input should be 'auto' or a valid integer", "search.replicates=often"),
    sweep("search.lr_scaling='cubic': ", "search.lr_scaling=cubic"),
    sweep("search.method='cmaes': takes ranges only", "search=cmaes"),
    sweep("pruner=quantile: no such option", "pruner=quantile"),
    sweep("'n_start': 1}: ", "pruner=median", "pruner.kwargs={n_start: 1}"),
    sweep("pruner.kwargs={'n_startup_trials': -1, ", "pruner=median", "pruner.kwargs={n_startup_trials: -1}"),
    sweep("first_rung=2: ", "pruner=lockstep", "pruner.kwargs={first_rung: 2}"),
    sweep("pruner.kwargs={'min_resource': 0", "pruner=successive_halving", "pruner.kwargs={min_resource: 0}"),
    sweep(
        "pruner.kwargs={'min_resource': 20, 'reduction_factor': 1}",
        "pruner=hyperband",
        "pruner.kwargs.reduction_factor=1",
    ),
    sweep("pruner.kwargs='fast': ", "++pruner.kwargs=fast"),
]

SPACE = [
    sweep("space: missing", "~space"),
    sweep("space.optimizer.lr=[]: ", "space.optimizer.lr=[]"),
    sweep("space.optimizer.lr=0.001: ", "space.optimizer.lr=1e-3"),
    sweep("space.optimizer.lr=-0.1: ", "space.optimizer.lr=[1e-4,-0.1]"),
    sweep("space.optimizer.lr=nan: ", "space.optimizer.lr=[1e-4,nan]"),
    sweep("space.optimizer.lr='fast': ", "space.optimizer.lr=[1e-4,fast]"),
    sweep("space.optimizer.lr: 0.0001 is listed twice", "space.optimizer.lr=[1e-4,1e-4]"),
    sweep("space.optimizer.betas.1=1.0: ", "space.optimizer.betas=[[0.9,1.0]]"),
    sweep("space.optimizer.lrr: the config has no such key; did you mean optimizer.lr?", "space.optimizer.lrr=[1,2]"),
    sweep("space.search.seed: changes nothing that a trial measures", "space.search.seed=[1,2]"),
    sweep("space.optimizer.lr.high=None: ", "space.optimizer.lr={low: 1e-5}"),
    sweep(
        "space.optimizer.lr: low (0.1) must be below high (0.01)", "space.optimizer.lr={low: 0.1, high: 0.01, num: 3}"
    ),
    sweep(
        "space.optimizer.weight_decay.low=0: a log range starts above 0",
        "space.optimizer.weight_decay={low: 0, high: 0.1, log: true, num: 3}",
    ),
    sweep("space.optimizer.lr.num=1: ", "space.optimizer.lr={low: 1e-5, high: 1e-3, num: 1}"),
    sweep("space.optimizer.lr.num=1000000000: ", "space.optimizer.lr={low: 1e-5, high: 1e-3, num: 1000000000}"),
    sweep("space.optimizer.lr.points: a range has the keys", "space.optimizer.lr={low: 1e-5, high: 1e-3, points: 5}"),
    sweep(
        "space.optimizer.lr: a grid over a range needs its number of points",
        "search=grid",
        "space.optimizer.lr={low: 1e-5, high: 1e-3}",
    ),
    sweep(
        "space: 1000000 points, but a grid has at most 10000",
        "search=grid",
        "space.optimizer.lr={low: 1e-5, high: 1e-3, num: 100}",
        "space.optimizer.eps={low: 1e-9, high: 1e-6, num: 100}",
        "space.optimizer.weight_decay={low: 0, high: 1, num: 100}",
    ),
    sweep(
        "training: horizon (20) is the real run's steps",
        "search=grid",
        "training.horizon=60",
        "space.training.horizon=[60,20]",
    ),
    sweep("space.data.path=['http://u:***@h/x']: holds a secret", "space.data.path=['http://u:hunter2@h/x']"),
    *(sweep("letters, digits, '.', '_' and '-' only", f"name={name}") for name in ("ü", "a b", "x[1]", "a'b", "試験")),
]

SWEEP_FILES = [
    own("sweeps/mine.yaml: not valid YAML: line 3: ", HEAD + "space: {optimizer: {lr: [1e-4\n", process=True),
    own("sweeps/mine.yaml: not valid YAML: line 3: ", HEAD + "search:\n\tn_trials: 3\n"),
    own(
        "finetune=qlora: sweep=mine sets all of its keys itself, so the option has no effect; set its keys on the "
        "command line (model.quantization=4bit)",
        HEAD + "model: {quantization: null}\nfinetune: {mode: lora}\nspace: {optimizer: {lr: [1e-4]}}\n",
        "finetune=qlora",
    ),
    own(
        "finetune=full: sweep=mine sets all of its keys itself, so the option has no effect; set its keys on the "
        "command line (finetune.mode=full)",
        HEAD + "finetune: {mode: lora}\nspace: {optimizer: {lr: [1e-4]}}\n",
        "finetune=full",
    ),
    own("sweeps/mine.yaml: not valid YAML: ", HEAD + "search: {n_trials: 3}\nsearch: {n_trials: 4}\n"),
    own("sweeps/mine.yaml: not valid YAML: ", HEAD + "model: !!python/object/apply:os.system ['touch owned']\n"),
    own("sweeps/mine.yaml: not valid YAML: ", HEAD + "model: !!python/name:os.system\n"),
    own("sweeps/mine.yaml: not UTF-8", b"# @package _global_\nname: \xff\xfe\n"),
    own("sweeps/mine.yaml: a config file is a mapping", "- optimizer\n- model\n"),
    own("just words: no such key", "just words\n"),
    own("sweeps/mine.yaml:5: more than 20000 values", BOMB, process=True),
    own("sweeps/mine.yaml:1: *a contains itself", "a: &a [*a]\n"),
    own("sweeps/mine.yaml:1: nested deeper than 50 levels", "[" * 5000 + "]" * 5000 + "\n"),
    own("sweeps/mine.yaml: 1000013 bytes", "# " + "x" * 1_000_010 + "\n"),
    own("optimizr: no such key; did you mean optimizer", HEAD + "optimizr: {lr: 1e-4}\n"),
    own("optimizer._target_", HEAD + "optimizer: {_target_: os.system}\nspace: {optimizer: {lr: [1e-4]}}\n"),
    own("optimizer.lr", HEAD + "optimizer: {lr: '${oops}'}\nspace: {optimizer: {lr: [1e-4]}}\n"),
    own("space is empty", ""),
    own("search=bayes: no such option", HEAD + "defaults:\n  - override /search: bayes\n"),
    own("mine", HEAD + "defaults: 5\n"),
    own("name='my sweep': letters, digits", HEAD + "name: my sweep\nspace: {optimizer: {lr: [1e-4]}}\n"),
    Bad("sweeps/mine.yaml: ", ("+sweep=mine",), {"sweeps/mine.yaml": a_folder}),
    Bad("sweep=mine: no such option", ("+sweep=mine",), {"sweeps/mine.yml": "space: {}\n"}),
    Bad(
        "conf/model/own.yaml:5: more than 20000 values", ("+sweep=lora_lr", "model=own"), {"conf/model/own.yaml": BOMB}
    ),
    Bad("conf/model/own.yaml", ("+sweep=lora_lr", "model=own"), {"conf/model/own.yaml": "path: [1\n"}),
    Bad("conf/model/own.yaml: not UTF-8", ("+sweep=lora_lr", "model=own"), {"conf/model/own.yaml": b"path: \xff\n"}),
    Bad(
        "model.pth: no such key; did you mean model.path?",
        ("+sweep=lora_lr", "model=own"),
        {"conf/model/own.yaml": "path: x\npth: x\n"},
    ),
    Bad(
        "conf/model/own.yaml: a config file is a mapping",
        ("+sweep=lora_lr", "model=own"),
        {"conf/model/own.yaml": "- a\n- b\n"},
    ),
]

PLACES = [
    sweep("outputs: is a symlink to elsewhere", files={"outputs": link("elsewhere"), "elsewhere/x": ""}),
    sweep(
        "outputs/lora_lr: is a symlink to ../elsewhere",
        files={"outputs/lora_lr": link("../elsewhere"), "elsewhere/x": ""},
        process=True,
    ),
    sweep(
        "outputs/lora_lr/study.db: is a symlink to ../../mine.db",
        files={"outputs/lora_lr/study.db": link("../../mine.db"), "mine.db": b"mine"},
    ),
    sweep("outputs/lora_lr/trials: is a symlink to /tmp", files={"outputs/lora_lr/trials": link("/tmp")}),
    sweep("outputs: is a file", files={"outputs": "a file\n"}, code=4),
    sweep("outputs/lora_lr: is a file", files={"outputs/lora_lr": "a file\n"}, code=4),
]

# Whole numbers and floats far beyond what a run can have, for every key that takes one.
_COUNTS = (
    *("training.max_steps", "training.horizon", "training.batch_size", "training.gradient_accumulation_steps"),
    *("training.eval_every", "training.eval_batch_size", "scheduler.warmup_steps", "finetune.r", "data.max_length"),
    *("finetune.trainable_layers", "data.max_train_rows", "data.max_eval_rows", "search.n_trials", "engine.slots"),
    *("search.max_failures", "executor.workers", "executor.cpus_per_worker", "training.seed", "search.seed"),
)
_FLOATS = ("optimizer.lr", "optimizer.eps", "finetune.alpha")
BOUNDS = [
    *(sweep(key, f"{key}={value}") for key in _COUNTS for value in ("100000000000", "1e30")),
    *(sweep(key, f"{key}={value}") for key in _COUNTS for value in ("-7", "0.5", "[1]")),
    *(sweep(f"{key}=", f"{key}={value}") for key in _FLOATS for value in ("1e-320", "5e-324", "1e300", "-1e-3")),
    sweep("training.max_grad_norm=", "training.max_grad_norm=1e300"),
    sweep("optimizer.weight_decay=", "optimizer.weight_decay=1e300"),
    sweep("finetune.r=100000000: ", "finetune.r=100000000"),
    sweep("space.optimizer.lr=5e-324: ", "space.optimizer.lr={low: 5e-324, high: 1e-322, num: 3, log: true}"),
    own(
        "space.training.seed: 1200 choices, but an axis has at most 1000",
        HEAD + f"space: {{training: {{seed: [{', '.join(map(str, range(1200)))}]}}}}\n",
    ),
]

TABLE = [*COMMAND_LINE, *KEYS, *VALUES, *SEARCH, *SPACE, *SWEEP_FILES, *PLACES, *BOUNDS]

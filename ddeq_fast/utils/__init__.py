"""What every room needs, and what knows none of them.

    validation       checks of arguments, whose messages name them
    options          dataclasses of options, registries
    tree             nested containers of tensors
    transforms       torch.func, vmap and forward mode: what is inside, and rules for operators
    precision        autocast, kept out of algebra
    differentiation  what networks are told of derivatives to come
    warning          warnings that point at the caller's line
    files            files written whole or not at all
    checkpoints      tensors in checked files
    locks            files that one process writes alone
    signals          Ctrl-C that waits for the work at hand
    optional         packages that only some parts need
    units            times and sizes in words
    console          lines and bars for the user of a command
    drawing          figures without a screen

Packages that are not needed everywhere are imported on use.
"""

"""`pgsluice keys`."""

from __future__ import annotations

from typing import Annotated

import typer

from proxy.options import AsJson, DatabaseName, KeyId, KeysConfigFile, KeysDsn, place, told

keys = typer.Typer(no_args_is_help=True, help="Make, list, show, revoke and rotate API keys.")


@keys.command("create")
def keys_create(
    user: Annotated[str, typer.Option(metavar="USER", help="Whose key; what row-level security goes by.")],
    name: Annotated[str, typer.Option(metavar="TEXT", help="What it is for.")] = "pgsluice keys create",
    permission: Annotated[
        list[str] | None, typer.Option(metavar="VERB:AREA", help="Such as read:tasks, or admin; repeatable.")
    ] = None,
    pool: Annotated[str | None, typer.Option(metavar="NAME", help="The pool of its sessions.")] = None,
    address: Annotated[
        list[str] | None, typer.Option(metavar="CIDR", help="Where it may be used; repeatable.")
    ] = None,
    rate_limit: Annotated[
        int | None, typer.Option(metavar="NUMBER", min=1, help="Statements a minute.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="WHEN", help="After a duration (30d), or at a time (2027-01-01).")
    ] = None,
    config: KeysConfigFile = None,
    database: DatabaseName = None,
    dsn: KeysDsn = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it; it can't be shown again.

    \b
    Examples:
      pgsluice keys create --user alice@example.com --permission read:tasks
      pgsluice keys create --user ci --permission admin --expires 30d --json
    """  # noqa: D301  \b keeps the lines as they are
    with told():
        from proxy import keytool

        code = keytool.create(
            place(config, database, dsn, new_keys_file=True),
            name,
            user,
            permission or (),
            pool=pool,
            addresses=address or (),
            rate_limit=rate_limit,
            expires=expires,
            as_json=as_json,
        )
        raise typer.Exit(code)


@keys.command("list")
def keys_list(
    user: Annotated[str | None, typer.Option(metavar="USER", help="This user's alone.")] = None,
    config: KeysConfigFile = None,
    database: DatabaseName = None,
    dsn: KeysDsn = None,
    as_json: AsJson = False,
) -> None:
    """List keys, without their secrets.

    \b
    Example:
      pgsluice keys list --user alice@example.com
    """  # noqa: D301  \b keeps the lines as they are
    with told():
        from proxy import keytool

        raise typer.Exit(keytool.show_all(place(config, database, dsn), user, as_json))


@keys.command("show")
def keys_show(
    key_id: KeyId,
    config: KeysConfigFile = None,
    database: DatabaseName = None,
    dsn: KeysDsn = None,
    as_json: AsJson = False,
) -> None:
    """Show a key's state, limits and use, without its secret.

    \b
    Example:
      pgsluice keys show ctm_ab12cd34ef56
    """  # noqa: D301  \b keeps the lines as they are
    with told():
        from proxy import keytool

        raise typer.Exit(keytool.show(place(config, database, dsn), key_id, as_json))


@keys.command("revoke")
def keys_revoke(
    key_id: KeyId,
    config: KeysConfigFile = None,
    database: DatabaseName = None,
    dsn: KeysDsn = None,
    as_json: AsJson = False,
) -> None:
    """End a key and its sessions at once.

    \b
    Example:
      pgsluice keys revoke ctm_ab12cd34ef56
    """  # noqa: D301  \b keeps the lines as they are
    with told():
        from proxy import keytool

        raise typer.Exit(keytool.revoke(place(config, database, dsn), key_id, as_json))


@keys.command("rotate")
def keys_rotate(
    key_id: KeyId,
    grace: Annotated[str, typer.Option(metavar="DURATION", help="How long the old key stays valid.")] = "1d",
    config: KeysConfigFile = None,
    database: DatabaseName = None,
    dsn: KeysDsn = None,
    as_json: AsJson = False,
) -> None:
    """Make a key like another, which stays valid for a while, and print it.

    \b
    Example:
      pgsluice keys rotate ctm_ab12cd34ef56 --grace 7d
    """  # noqa: D301  \b keeps the lines as they are
    with told():
        from proxy import keytool

        raise typer.Exit(keytool.rotate(place(config, database, dsn), key_id, grace, as_json))


@keys.command("rotate-signing")
def keys_rotate_signing(
    now: Annotated[
        bool, typer.Option("--now", help="At once, with a gap of seconds: the key is known to others.")
    ] = False,
    config: KeysConfigFile = None,
    database: DatabaseName = None,
    dsn: KeysDsn = None,
    as_json: AsJson = False,
) -> None:
    """Exchange the key that signs identities for a new one.

    \b
    Examples:
      pgsluice keys rotate-signing
      pgsluice keys rotate-signing --now
    """  # noqa: D301  \b keeps the lines as they are
    with told():
        from proxy import keytool

        raise typer.Exit(keytool.rotate_signing(place(config, database, dsn), now, as_json))

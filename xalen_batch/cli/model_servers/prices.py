"""The prices of a model that was just added."""

from xalen_batch.cli import database
from xalen_batch.cli.failures import Failed


def put_in_force(model: str) -> str | None:
    """Put the prices of this model in force, if no other price would change.

    Returns why not, with the remedy.
    """
    from xalen_batch import catalog
    from xalen_batch.billing import prices

    later = "`xalen-batch prices sync` puts its prices in force"
    catalog.reload()
    try:
        with database.transaction() as session:
            from xalen_batch import migrate

            if not migrate.is_usable():
                return f"{later}, after `xalen-batch migrate`."
            changes = prices.differences(session)
            if {change.model for change in changes} - {model}:
                return f"{later}; prices of other models differ as well."
            prices.sync(session, changes)
            return None
    except prices.Refused as refusal:
        return f"{later}. {refusal}"
    except Failed:
        return f"{later}, once the server runs."
    except Exception as error:
        return f"{later}: the database did not answer ({type(error).__name__})."

"""The table of loans."""

from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    operations = (
        migrations.CreateModel(
            name="Loan",
            fields=[
                ("id", models.BigAutoField(primary_key=True)),
                ("book", models.CharField(max_length=200, unique=True)),
                ("reader", models.CharField(max_length=200)),
            ],
        ),
    )
